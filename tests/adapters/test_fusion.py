"""Fusion functions alone, at numbers small enough to check by hand."""

import math

import pytest
import torch

from flare_ds.adapters.fusion import FUSIONS, CrossAttention
from flare_ds.exceptions import ConfigError

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
    assert list(FUSIONS) == ["add_relu", "add", "mul", "mul_relu", "cross_attention"]
    with pytest.raises(ConfigError, match=r"'cross_atention'\n.*did you mean 'cross_attention'"):
        FUSIONS.get("cross_atention")


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
