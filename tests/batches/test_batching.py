"""A step shared among ranks and micro-batches: no row lost or counted twice, on any number of ranks."""

from collections import Counter
from itertools import combinations_with_replacement, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flare_ds.batches.batching import MicroBatch, evaluation_batches, split_step

worlds = st.integers(1, 9)
micro_sizes = st.integers(1, 7)
budgets = st.none() | st.integers(1, 40) | st.integers(40, 200)


def counted_rows(ranks: list[list[MicroBatch]]) -> Counter[int]:
    """How often each row has weight 1, over all ranks."""
    return Counter(
        int(row)
        for micro_batches in ranks
        for batch in micro_batches
        for row, weight in zip(batch.rows, batch.weights, strict=True)
        if weight == 1
    )


@given(st.lists(st.integers(1, 50), max_size=70), worlds, micro_sizes, budgets, st.data())
def test_a_step_counts_every_row_once_on_any_world_size(
    lengths: list[int], world_size: int, most_rows: int, most_tokens: int | None, data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.sampled_from(range(len(lengths))), max_size=40)) if lengths else []
    rows = np.array(chosen, np.int64)
    ranks = split_step(
        rows,
        np.array(lengths, np.int32),
        world_size=world_size,
        micro_batch_size=most_rows,
        micro_batch_tokens=most_tokens,
    )
    assert len(ranks) == world_size
    assert counted_rows(ranks) == Counter(chosen)
    # Equally many micro-steps on all ranks, the fewest that can hold the rows.
    assert {len(micro_batches) for micro_batches in ranks} == {
        -(-fewest_pieces(sorted((lengths[row] for row in chosen), reverse=True), most_rows, most_tokens) // world_size)
    }
    for batch in [batch for micro_batches in ranks for batch in micro_batches]:
        assert 1 <= len(batch.rows) <= most_rows
        if most_tokens is not None and len(batch.rows) > 1:
            assert len(batch.rows) * max(lengths[row] for row in batch.rows) <= most_tokens
        assert batch.rows.dtype == np.int64 and batch.weights.dtype == np.float32
        assert set(batch.weights) <= {0, 1}
        assert set(batch.rows) <= set(chosen)


def fewest_pieces(lengths: list[int], most_rows: int, most_tokens: int | None) -> int:
    """Of descending lengths, by trying every end of every piece: fewest[i] pieces hold the first i rows."""
    fewest = [0]
    for end in range(1, len(lengths) + 1):
        starts = [
            start
            for start in range(max(0, end - most_rows), end)
            if end - start == 1 or most_tokens is None or (end - start) * lengths[start] <= most_tokens
        ]
        fewest.append(1 + min(fewest[start] for start in starts))
    return fewest[-1]


@given(st.lists(st.integers(1, 50), max_size=70), worlds, micro_sizes, budgets)
def test_evaluation_batches_are_the_same_on_any_world_size(
    lengths: list[int], world_size: int, batch_size: int, most_tokens: int | None
) -> None:
    """Not their rows alone: a row's padding, too, follows from those beside it."""
    lengths_N = np.array(lengths, np.int32)
    (alone,) = evaluation_batches(lengths_N, world_size=1, batch_size=batch_size, batch_tokens=most_tokens)
    ranks = evaluation_batches(lengths_N, world_size=world_size, batch_size=batch_size, batch_tokens=most_tokens)
    assert len(ranks) == world_size and {len(batches) for batches in ranks} == {-(-len(alone) // world_size)}
    dealt = [ranks[rank][step] for step in range(len(ranks[0])) for rank in range(world_size)]
    assert [batch.rows.tolist() for batch in dealt[: len(alone)]] == [batch.rows.tolist() for batch in alone]
    assert all(batch.weights.all() for batch in alone) and not any(batch.weights.any() for batch in dealt[len(alone) :])
    assert counted_rows(ranks) == Counter(range(len(lengths)))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=70), worlds, micro_sizes, budgets)
def test_ranks_that_evaluate_side_by_side_have_about_equally_much_to_do(
    lengths: list[int], world_size: int, batch_size: int, most_tokens: int | None
) -> None:
    """Batches come by padded tokens, the largest first; each holds neighbours in length, so that no cut pads less."""
    ranks = evaluation_batches(
        np.array(lengths, np.int32), world_size=world_size, batch_size=batch_size, batch_tokens=most_tokens
    )
    in_time = [ranks[rank][step] for step in range(len(ranks[0])) for rank in range(world_size)]
    tokens = [len(batch.rows) * max(lengths[row] for row in batch.rows) for batch in in_time]
    assert tokens == sorted(tokens, reverse=True)
    kept = [sorted(lengths[row] for row in batch.rows) for batch in in_time if batch.weights.any()]
    by_length = sorted(kept, key=lambda of_batch: (of_batch[-1], of_batch[0]))
    assert [length for of_batch in by_length for length in of_batch] == sorted(lengths)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(1, 3), st.integers(3, 9), budgets)
def test_the_largest_micro_batch_is_as_small_as_any_cut_makes_it(
    lengths: list[int], world_size: int, most: int, most_tokens: int | None
) -> None:
    ranks = split_step(
        np.arange(len(lengths)),
        np.array(lengths),
        world_size=world_size,
        micro_batch_size=most,
        micro_batch_tokens=most_tokens,
    )
    found = max(len(batch.rows) * max(lengths[row] for row in batch.rows) for batches in ranks for batch in batches)
    ordered, slots = sorted(lengths, reverse=True), world_size * len(ranks[0])
    possible = []
    for cuts in combinations_with_replacement(range(len(lengths) + 1), slots - 1):
        parts = [ordered[a:b] for a, b in pairwise([0, *cuts, len(lengths)])]
        if all(len(part) <= most for part in parts):
            possible.append(max(len(part) * part[0] for part in parts if part))
    assert found == min(possible)


def test_a_rank_without_rows_repeats_the_shortest_with_weight_zero() -> None:
    ranks = split_step(np.array([4, 2]), np.array([9, 9, 5, 9, 7]), world_size=3, micro_batch_size=8)
    assert [batch.rows.tolist() for (batch,) in ranks] == [[4], [2], [2]]
    assert [batch.weights.tolist() for (batch,) in ranks] == [[1], [1], [0]]


def test_a_row_longer_than_the_budget_goes_alone_and_frees_no_other() -> None:
    lengths = np.array([10, 50, 10, 10])
    (batches,) = split_step(np.arange(4), lengths, world_size=1, micro_batch_size=8, micro_batch_tokens=20)
    assert [batch.rows.tolist() for batch in batches] == [[1], [0, 2], [3]]
