"""Alignment on the drawing in its module, and its invariants."""

import pytest
import torch

from flare_ds.adapters.alignment import Alignment, align_streams


def partners(mode: str, source: int, target: int, columns: int = 6, answers: int = 2) -> dict[int, int]:
    """Which source token each target token meets, counted from each prompt's own start."""
    real_BL = torch.arange(columns + answers)[None] >= columns - target
    found = align_streams(
        torch.tensor([[source]]), torch.tensor([target]), prompt_columns=columns, real_BL=real_BL, mode=mode
    )
    pairs = enumerate(zip(found.index_SBL[0, 0].tolist(), found.partner_SBL[0, 0].tolist(), strict=True))
    return {c - (columns - target): j - (columns - source) for c, (j, has) in pairs if has}


@pytest.mark.parametrize(
    ("mode", "source", "target", "expected"),
    [
        ("right", 4, 3, {0: 1, 1: 2, 2: 3}),
        ("left", 4, 3, {0: 0, 1: 1, 2: 2}),
        ("stretch", 4, 3, {0: 0, 1: 2, 2: 3}),
        ("right", 2, 4, {2: 0, 3: 1}),
        ("left", 2, 4, {0: 0, 1: 1}),
        ("stretch", 2, 4, {0: 0, 1: 0, 2: 1, 3: 1}),
        ("stretch", 5, 1, {0: 4}),
        ("stretch", 1, 3, {0: 0, 1: 0, 2: 0}),
        ("right", 0, 3, {}),
        ("left", 0, 3, {}),
        ("stretch", 0, 3, {}),
    ],
)
def test_partners(mode: str, source: int, target: int, expected: dict[int, int]) -> None:
    assert partners(mode, source, target) == expected


@pytest.mark.parametrize("mode", ["right", "left", "stretch"])
def test_partners_are_real_source_tokens_in_order(mode: str) -> None:
    for source in range(7):
        for target in range(1, 7):
            found = partners(mode, source, target)
            assert all(0 <= k < target and 0 <= j < source for k, j in found.items())
            assert list(found.values()) == sorted(found.values())


def test_gather_brings_each_source_vector_to_its_partner() -> None:
    real_BL = torch.tensor([[False, True, True]])
    alignment = align_streams(torch.tensor([[3]]), torch.tensor([2]), prompt_columns=3, real_BL=real_BL, mode="left")
    gathered = alignment.combine(torch.tensor([[[[10.0], [11.0], [12.0]]]]), torch.ones(1))
    assert gathered[0, alignment.partner_BL[0], 0].tolist() == [10.0, 11.0]


def two_sources() -> Alignment:
    """Three target columns: the first meets both sources, the second only the second one, the last none."""
    return Alignment(
        index_SBL=torch.tensor([[[1, 0, 0]], [[0, 1, 1]]]),
        partner_SBL=torch.tensor([[[True, False, False]], [[True, True, False]]]),
        real_BC=torch.ones(1, 3, dtype=torch.bool),
    )


def test_combine_is_the_weighted_mean_of_the_sources_that_have_a_partner() -> None:
    alignment = two_sources()
    source_SBMR = torch.tensor([[[[10.0], [20.0]]], [[[30.0], [40.0]]]])
    combined = alignment.combine(source_SBMR, torch.tensor([0.25, 0.75]))
    assert combined[0, :, 0].tolist() == [0.25 * 20 + 0.75 * 30, 40.0, 0.0]
    assert torch.equal(combined, alignment.combine(source_SBMR, torch.tensor([1.0, 3.0]))), "only proportions count"
    assert alignment.sources == 2 and alignment.partner_BL.tolist() == [[True, True, False]]


def test_combine_passes_finite_gradients_where_no_source_has_a_partner() -> None:
    source_SBMR, weights_S = torch.ones(2, 1, 2, 3, requires_grad=True), torch.ones(2, requires_grad=True)
    two_sources().combine(source_SBMR, weights_S).sum().backward()
    assert torch.isfinite(source_SBMR.grad).all() and torch.isfinite(weights_S.grad).all()
    assert source_SBMR.grad[0, 0, 0].tolist() == [0, 0, 0]


def test_answers_meet_in_their_column_as_far_as_the_source_has_them() -> None:
    real_BL = torch.tensor([[False, True, True, True, True], [True, True, True, True, False]])
    alignment = align_streams(
        torch.tensor([[1, 3]]),
        torch.tensor([2, 3]),
        prompt_columns=3,
        real_BL=real_BL,
        mode="right",
        source_answers_SB=torch.tensor([[1, 2]]),
    )
    assert alignment.partner_SBL[0].int().tolist() == [[0, 0, 1, 1, 0], [1, 1, 1, 1, 0]]
    assert alignment.index_SBL[alignment.partner_SBL].tolist() == [2, 3, 0, 1, 2, 3]


def test_stored_states_stand_in_columns_of_their_own() -> None:
    alignment = align_streams(
        torch.tensor([[5]]),
        torch.tensor([2]),
        prompt_columns=3,
        real_BL=torch.tensor([[False, True, True, True]]),
        mode="right",
        source_columns=7,
    )
    assert alignment.index_SBL[alignment.partner_SBL].tolist() == [5, 6]


def test_what_no_target_meets_is_blank() -> None:
    """In the drawing's `right`, s0 and the source's padding meet nobody."""
    alignment = align_streams(
        torch.tensor([[4]]), torch.tensor([3]), prompt_columns=6, real_BL=torch.arange(8)[None] >= 3, mode="right"
    )
    state_XMD = torch.arange(1.0, 9.0)[None, :, None].clone()
    state_XMD[0, :2] = torch.nan
    assert alignment.without_unmet(state_XMD)[0, :, 0].tolist() == [0, 0, 0, 4, 5, 6, 0, 0]
