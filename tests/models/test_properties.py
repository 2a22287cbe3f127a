"""What holds for every row, padding and setting: no padding shows, nothing leaks into another row or looks ahead.

In float64, so that what should be equal is equal to rounding, and what should be untouched is equal bit for bit.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flare_ds.adapters.fusion import FUSIONS
from flare_ds.adapters.inject import inject_adapter
from flare_ds.batches.collate import NO_TARGET, Batch
from flare_ds.config import Config
from flare_ds.models.two_stream import TwoStreamModel
from tests.by_hand import LENGTHS, build, make_batch, make_config, make_rows
from tests.oracle import Row
from tests.small_models import VOCAB, small_model

TOLERANCE = 1e-6
PAIRINGS = ["output", "input", "module"]

source_lengths = st.one_of(st.just((0, 0)), st.tuples(st.integers(1, 5), st.integers(1, 3)))
lengths = st.lists(
    st.tuples(st.lists(source_lengths, min_size=2, max_size=2), st.tuples(st.integers(1, 5), st.integers(1, 3))),
    min_size=1,
    max_size=3,
)
choices = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["llama", "gemma3"]),
        "fusion": st.sampled_from(list(FUSIONS)),
        "pairing": st.sampled_from(PAIRINGS),
        "align": st.sampled_from(["right", "left", "stretch"]),
        "span": st.sampled_from(["prompt", "full"]),
        "sources": st.sampled_from([1, 2]),
    }
)


@cache
def model_of(name: str, **chosen: Any) -> tuple[TwoStreamModel, Config]:
    config = make_config(**chosen)
    return build(name, config).double().eval(), config


@torch.no_grad()
def answer_logits(model: TwoStreamModel, batch: Batch) -> Tensor:
    """Logits that predict an answer; the others stand behind the row's end."""
    return model(batch)[batch.answers_BN != NO_TARGET]


def other(token: int) -> int:
    return (token + 7) % VOCAB


@settings(max_examples=40)
@given(choices, lengths, st.integers(0, 3), st.integers(0, 2), st.integers(0, 99))
def test_padding_changes_nothing(chosen: dict, lengths: list, left: int, right: int, seed: int) -> None:
    model, config = model_of(**chosen)
    rows = make_rows(config.sources, lengths)
    plain = answer_logits(model, make_batch(rows, config))
    assert torch.isfinite(plain).all()
    assert torch.equal(answer_logits(model, make_batch(rows, config, pad_seed=seed)), plain)
    wider = make_batch(rows, config, left=left, right=right, pad_seed=seed)
    torch.testing.assert_close(answer_logits(model, wider), plain, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("source_down", ["own", "shared"])
@pytest.mark.parametrize("pairing", ["input", "module"])
def test_source_padding_that_holds_nan_reaches_no_gradient(pairing: str, source_down: str) -> None:
    """In one layer, fused in q and v: behind it the base itself would spread the NaN to all positions."""
    config = make_config(pairing=pairing, source_down=source_down, sources=2)
    batch, sources = make_batch(make_rows(2), config), 2 * len(LENGTHS)
    padding_XL1 = (batch.attention_mask[:sources] == 0)[..., None]

    def gradients(padded_with: float) -> dict[str, Tensor]:
        model = build("llama", config, layers=1)

        def spoil(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden, *rest = inputs
            return (torch.cat([hidden[:sources].masked_fill(padding_XL1, padded_with), hidden[sources:]]), *rest)

        model.base.model.layers[0].register_forward_pre_hook(spoil)
        model(batch, with_loss=True).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}

    for (name, spoilt), plain in zip(gradients(torch.nan).items(), gradients(0.0).values(), strict=True):
        assert torch.equal(spoilt, plain), name


@settings(max_examples=25)
@given(choices, lengths)
def test_a_row_without_source_is_plain_lora(chosen: dict, lengths: list) -> None:
    fused, config = model_of(**chosen)
    plain, plain_config = model_of(name=chosen["name"], method="lora")
    missing = [(0, 0), (0, 0)]
    rows = make_rows(2, [*lengths, *((missing, target) for _, target in lengths)])
    without = rows[len(lengths) :]
    batch = make_batch(rows, config)
    real = batch.answers_BN[len(lengths) :] != NO_TARGET
    with torch.no_grad():
        found = fused(batch)[len(lengths) :][real]
    expected = answer_logits(plain, make_batch(without, plain_config))
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


@settings(max_examples=25)
@given(choices, lengths, st.data())
def test_a_source_reaches_only_its_own_row(chosen: dict, lengths: list, data: st.DataObject) -> None:
    model, config = model_of(**chosen)
    rows = make_rows(config.sources, lengths)
    changed = data.draw(st.integers(0, len(rows) - 1))
    sources = [(list(map(other, prompt)), list(map(other, answer))) for prompt, answer in rows[changed].sources]
    after_rows = [replace(row, sources=sources) if i == changed else row for i, row in enumerate(rows)]
    with torch.no_grad():
        before, after = model(make_batch(rows, config)), model(make_batch(after_rows, config))
    untouched = [i for i in range(len(rows)) if i != changed]
    assert torch.equal(before[untouched], after[untouched])


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_each_source_does_reach_its_row(fusion: str, pairing: str) -> None:
    model, config = model_of("llama", fusion=fusion, pairing=pairing, sources=2)
    rows = make_rows(2)
    before = answer_logits(model, make_batch(rows, config))
    for number in range(2):
        sources = list(rows[1].sources)
        sources[number] = (list(map(other, sources[number][0])), sources[number][1])
        after = answer_logits(model, make_batch([rows[0], replace(rows[1], sources=sources), *rows[2:]], config))
        first = len(rows[0].answer)
        touched = (before != after).any(-1)
        assert touched.nonzero().flatten().tolist() == list(range(first, first + len(rows[1].answer)))


@settings(max_examples=40)
@given(choices, lengths, st.data())
def test_nothing_looks_ahead(chosen: dict, lengths: list, data: st.DataObject) -> None:
    """A changed target token changes no logits before its column; nor does an answer token of a source (span=full)."""
    model, config = model_of(**chosen)
    rows = make_rows(config.sources, lengths)
    batch = make_batch(rows, config, everywhere=True)
    end, first_target = batch.prompt_columns, config.sources * len(rows)
    places = [
        (line, column)
        for line, column in batch.attention_mask.nonzero().tolist()
        if line >= first_target or column >= end
    ]
    line, column = data.draw(st.sampled_from(places))
    ids = batch.input_ids.clone()
    ids[line, column] = other(int(ids[line, column]))
    real = batch.attention_mask[first_target:].bool()
    with torch.no_grad():
        changed = (model(batch) != model(replace(batch, input_ids=ids))).any(-1) & real
    assert not changed[:, :column].any()
    if line >= first_target:
        assert changed[line - first_target, column], "the changed token itself shows"


@pytest.mark.parametrize("fusion", FUSIONS)
def test_with_span_full_answers_meet_in_their_column(fusion: str) -> None:
    model, config = model_of("llama", fusion=fusion, span="full")
    rows = [Row([5, 6, 7], [8, 9, 10, 11], [([12, 13], [14, 15, 16])])]
    batch = make_batch(rows, config, everywhere=True)
    ids = batch.input_ids.clone()
    ids[0, batch.prompt_columns + 1] = 40
    with torch.no_grad():
        changed = (model(batch) != model(replace(batch, input_ids=ids)))[0].any(-1)
    assert changed.tolist() == [False] * 4 + [True] * 2


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("settings", [*({"pairing": name} for name in PAIRINGS), {"span": "full", "sources": 2}])
def test_a_fresh_adapter_leaves_the_base_bit_for_bit(fusion: str, settings: dict[str, Any]) -> None:
    base, _ = small_model("gemma3")
    config = make_config(fusion=fusion, **settings)
    batch = make_batch(make_rows(config.sources), config)
    rows = len(batch.target_lengths_B)
    with torch.no_grad():
        expected = base(
            input_ids=batch.input_ids[-rows:],
            attention_mask=batch.attention_mask[-rows:],
            position_ids=batch.position_ids[-rows:],
            logits_to_keep=batch.answer_columns_N,
            use_cache=False,
        ).logits
        model = TwoStreamModel(inject_adapter(base, config.adapter, sources=config.sources, seed=7), config)
        assert torch.equal(model(batch), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_source_states_are_the_frozen_bases(pairing: str, checkpointing: bool) -> None:
    """Adapters off, no dropout, no gradient, while the target trains with all of them."""
    config = make_config(pairing=pairing, sources=2, dropout=0.5, checkpointing=checkpointing)
    model = build("gemma3", config)
    model.base.enable_input_require_grads()  # as is done before training over a quantized base
    batch = make_batch(make_rows(2), config)
    sources = 2 * len(LENGTHS)
    seen: list[Tensor] = []
    last = model.base.model.layers[-1]  # behind which nobody reads them
    last.register_forward_pre_hook(lambda *_: seen.append(model.streams.sources.beside.state_XMD))
    first, second = model(batch), model(batch)
    assert not torch.equal(first, second), "the target's adapters have dropout"
    untouched, _ = small_model("gemma3", layers=2)
    untouched.model.layers[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        untouched(
            input_ids=batch.input_ids[:sources],
            attention_mask=batch.attention_mask[:sources],
            position_ids=batch.position_ids[:sources],
            use_cache=False,
        )
    columns = batch.columns[0]
    real, expected = batch.attention_mask[:sources, columns].bool(), seen[2][:, columns]
    assert len(seen) == 3 and not any(state.requires_grad for state in seen)
    for state in seen[:2]:
        torch.testing.assert_close(state[real], expected[real], rtol=1e-6, atol=1e-6)


def test_only_the_dropout_of_the_adapter_trains() -> None:
    model = build("llama", make_config(dropout=0.5, train_head=True, fusion="cross_attention"))
    training = {name for name, module in model.named_modules() if module.training and name}
    assert training and all("lora_dropout" in name for name in training)
    assert not any(module.training for module in model.eval().modules())
