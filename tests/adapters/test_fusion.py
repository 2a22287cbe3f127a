"""Fusion functions alone, at numbers small enough to check by hand, and what they train."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from flare_ds.adapters.fusion import FUSIONS, CrossAttention
from flare_ds.adapters.inject import inject_adapter
from flare_ds.exceptions import ConfigError
from flare_ds.models.two_stream import TwoStreamModel
from tests.by_hand import make_batch, make_config, make_rows, short_name
from tests.oracle import Row
from tests.small_models import small_model

S, T = torch.tensor([[[-1.0, 2.0], [3.0, -4.0]]]), torch.tensor([[[5.0, 6.0], [-7.0, 8.0]]])
REAL = torch.ones(1, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("add", [[4, 8], [-4, 4]]),
        ("add_relu", [[5, 8], [3, 8]]),
        ("mul", [[-5, 12], [-21, -32]]),
        ("mul_relu", [[0, 12], [0, 0]]),
    ],
)
def test_elementwise(name: str, expected: list[list[float]]) -> None:
    function = FUSIONS.get(name)(2, 1)
    assert function(S, T, REAL).tolist() == [expected]
    assert function(S[:, 1:], T, REAL).tolist() == [expected[1:]], "decoding: only the last position is new"
    assert not list(function.parameters())


def test_an_unknown_function_suggests_the_nearest() -> None:
    assert list(FUSIONS) == ["add_relu", "add", "mul", "mul_relu", "gate", "cross_attention"]
    with pytest.raises(ConfigError, match=r"'cross_atention'\n.*did you mean 'cross_attention'"):
        FUSIONS.get("cross_atention")


class Counting(nn.Module):
    """Holds what is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))


def test_a_name_is_taken_once_unless_another_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FUSIONS, "_things", dict(FUSIONS._things))
    with pytest.raises(ConfigError, match=r"fusion function 'add' is registered already\n.*replace=True"):
        FUSIONS.add("add", lambda r, heads: Counting())
    assert FUSIONS.get("add")(2, 1)(S, T, REAL).tolist() == [[[4, 8], [-4, 4]]]
    FUSIONS.add("add", lambda r, heads: Counting(), replace=True)
    assert isinstance(FUSIONS.get("add")(2, 1), Counting)


@pytest.mark.parametrize(("made", "held"), [(Counting, "seen"), (lambda: nn.Sequential(nn.Dropout(0.1)), "Dropout")])
def test_what_is_neither_saved_nor_switched_for_training_is_refused(
    made: Callable[[], nn.Module], held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FUSIONS, "_things", dict(FUSIONS._things))
    FUSIONS.add("own", lambda r, heads: made())
    with pytest.raises(ConfigError, match=rf"adapter\.fusion='own' holds {held}: buffers are not saved"):
        fresh(fusion="own")


class OneNumber(nn.Module):
    """A φ that would be broadcast over the bottleneck."""

    def forward(self, source_BLR: torch.Tensor, target_BCR: torch.Tensor, real_BC: torch.Tensor) -> torch.Tensor:
        return source_BLR.mean(-1, keepdim=True)


def test_a_result_of_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FUSIONS, "_things", dict(FUSIONS._things))
    FUSIONS.add("own", lambda r, heads: OneNumber())
    config = make_config(fusion="own")
    with pytest.raises(ConfigError, match=r"function OneNumber returned \(\d+, \d+, 1\), not φ \[B, L, R\]"):
        fresh(fusion="own")(make_batch(make_rows(), config))


def test_the_gate_by_hand() -> None:
    gate = FUSIONS.get("gate")(2, 1)
    assert gate(S, T, REAL).tolist() == [[[5 - 0.25, 6 + 0.5], [-7 + 0.75, 8 - 1]]], "a quarter of the source at first"
    with torch.no_grad():
        gate.opening_R.copy_(torch.tensor([2.0, -1.0]) / 32)
    assert gate(S, T, REAL).tolist() == [[[5 - 2, 6 - 2], [-7 + 6, 8 + 4]]]
    assert gate(S[:, 1:], T, REAL).tolist() == [[[-1, 12]]], "decoding: only the last position is new"


def fresh(seed: int = 7, **settings: Any) -> TwoStreamModel:
    """A small Llama with a fresh fusion adapter."""
    config = make_config(**settings)
    return TwoStreamModel(inject_adapter(small_model("llama")[0], config.adapter, sources=1, seed=seed), config)


def trained(model: TwoStreamModel) -> dict[str, torch.Tensor]:
    return {short_name(name): value for name, value in model.named_parameters() if value.requires_grad}


def test_a_fresh_gate_teaches_b_the_source_at_once() -> None:
    model, rows = fresh(fusion="gate"), make_rows()
    other = [Row(row.target, row.answer, [(prompt[::-1], answer) for prompt, answer in row.sources]) for row in rows]

    def gradients(rows: list[Row]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(make_batch(rows, make_config(fusion="gate")), with_loss=True).backward()
        return {name: value.grad.clone() for name, value in trained(model).items()}

    first, of_others = gradients(rows), gradients(other)
    fused_b = [name for name in first if name.endswith(("q_proj.lora_B.weight", "v_proj.lora_B.weight"))]
    assert all(not torch.equal(first[name], of_others[name]) for name in fused_b), "other sources, another first step"
    assert all((grad != 0).any() == ("lora_B" in name) for name, grad in first.items()), "B = 0 stops all others"
    with torch.no_grad():
        for name in first:
            trained(model)[name].sub_(first[name], alpha=0.01)
    assert all((grad != 0).any() for grad in gradients(rows).values())


def test_what_trains_besides_a_and_b() -> None:
    def count(**settings: Any) -> int:
        return sum(value.numel() for value in trained(fresh(**settings)).values())

    fused, r, width = 3 * 2, 4, 16  # layers, and q_proj and v_proj in each
    assert count(fusion="gate") - count() == fused * r
    assert count(source_down="own") - count() == fused * r * width
    assert count(fusion="cross_attention") - count() == fused * (3 * r * r + 2 * r)
    wide = {"pairing": "module", "fused_modules": ["down_proj"]}
    assert count(**wide, source_down="own") - count(**wide) == 3 * r * 24


def test_the_sources_own_a_begins_as_the_targets_does() -> None:
    shared, own = trained(fresh()), trained(fresh(source_down="own"))
    extra = {name: own.pop(name) for name in list(own) if "source_down" in name}
    assert own.keys() == shared.keys() and all(torch.equal(own[name], shared[name]) for name in own)
    again, another = trained(fresh(source_down="own")), trained(fresh(source_down="own", seed=8))
    targets = {name: own[name.replace("lora_fusion.source_down", "lora_A")] for name in extra}
    for name, value in extra.items():
        assert value.shape == targets[name].shape and value.dtype == torch.float32
        assert torch.equal(value, again[name])
        assert not torch.equal(value, another[name]) and not torch.equal(value, targets[name])
    ours, pefts = (torch.stack(list(values.values())) for values in (extra, targets))
    assert ours.abs().max() <= 16**-0.5, "U(-1/√D, 1/√D)"
    assert ours.std().item() == pytest.approx(pefts.std().item(), rel=0.1)


def identity_attention(heads: int = 1) -> CrossAttention:
    """Cross-attention whose maps change nothing."""
    attention = CrossAttention(2, heads)
    for linear in (attention.query, attention.key, attention.value):
        torch.nn.init.eye_(linear.weight)
        if linear.bias is not None:
            torch.nn.init.zeros_(linear.bias)
    return attention


def test_cross_attention_by_hand() -> None:
    first, second = identity_attention()(S, T, REAL)[0].tolist()
    assert first == [5, 6], "the first position has only itself to ask"
    scores = [(3 * 5 - 4 * 6) / math.sqrt(2), (3 * -7 - 4 * 8) / math.sqrt(2)]
    share = math.exp(scores[0]) / (math.exp(scores[0]) + math.exp(scores[1]))
    assert second == pytest.approx([share * 5 + (1 - share) * -7, share * 6 + (1 - share) * 8], rel=1e-6)


def test_heads_attend_on_their_own() -> None:
    both = identity_attention(heads=2)(S, T, REAL)
    for head in range(2):
        part = slice(head, head + 1)
        alone = CrossAttention(1, 1)
        for linear in (alone.query, alone.key, alone.value):
            torch.nn.init.ones_(linear.weight)
            if linear.bias is not None:
                torch.nn.init.zeros_(linear.bias)
        torch.testing.assert_close(both[..., part], alone(S[..., part], T[..., part], REAL))


def test_cross_attention_asks_no_padding_and_nothing_later() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(4, 2)
    source, target = torch.randn(1, 5, 4), torch.randn(1, 5, 4)
    real = torch.tensor([[False, True, True, True, False]])
    before = attention(source, target, real)
    for column, unchanged in [(0, [1, 2, 3]), (4, [1, 2, 3]), (3, [1, 2]), (2, [1])]:
        changed = target.clone()
        changed[0, column] += 1
        after = attention(source, changed, real)
        assert torch.equal(before[0, unchanged], after[0, unchanged])
        assert column in (0, 4) or not torch.equal(before[0, column], after[0, column])
    assert torch.isfinite(before).all(), "padding before the first token has only itself, and no NaN"


def test_cross_attention_decodes_as_it_reads() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(4, 2)
    source, target = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    real = torch.arange(6)[None] >= torch.tensor([[0], [2]])
    whole = attention(source, target, real)
    for start, end in [(0, 4), (4, 5), (5, 6)]:
        torch.testing.assert_close(attention(source[:, start:end], target[:, :end], real[:, :end]), whole[:, start:end])


def test_the_key_has_no_bias() -> None:
    """It would shift all scores of a query alike, so its gradient would be zero."""
    names = {name for name, _ in CrossAttention(4, 1).named_parameters()}
    assert names == {"query.weight", "query.bias", "key.weight", "value.weight", "value.bias"}
