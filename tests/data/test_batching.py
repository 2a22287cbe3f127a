"""Batches: no row is lost or counted twice, whatever the world size and wherever a run resumes."""

from collections import Counter
from itertools import combinations_with_replacement, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flare_ds.data.batching import MicroBatch, TrainOrder, evaluation_batches, split_step

worlds = st.integers(1, 9)
micro_sizes = st.integers(1, 7)
orders = st.builds(TrainOrder, st.integers(1, 60), st.integers(1, 40), st.integers(0, 2**32))


def counted_rows(ranks: list[list[MicroBatch]]) -> Counter[int]:
    """How often each row has weight 1, over all ranks."""
    return Counter(
        int(row)
        for micro_batches in ranks
        for batch in micro_batches
        for row, weight in zip(batch.rows, batch.weights, strict=True)
        if weight == 1
    )


@given(orders, st.integers(0, 20))
def test_every_epoch_is_a_permutation_wherever_a_run_resumes(order: TrainOrder, first_step: int) -> None:
    from_start = [TrainOrder(order.num_rows, order.batch_size, order.seed).rows(step) for step in range(first_step)]
    resumed = [order.rows(step) for step in range(first_step, first_step + 2 * order.num_rows)]
    stream = np.concatenate(from_start + resumed)
    whole_epochs = len(stream) // order.num_rows
    assert whole_epochs >= 2
    for epoch in stream[: whole_epochs * order.num_rows].reshape(whole_epochs, order.num_rows):
        assert sorted(epoch) == list(range(order.num_rows))


@given(orders, st.integers(0, 20))
def test_a_step_has_the_batch_size(order: TrainOrder, step: int) -> None:
    rows = order.rows(step)
    assert rows.shape == (order.batch_size,)
    assert rows.dtype == np.int64


def test_epochs_and_seeds_shuffle_differently() -> None:
    first, second = TrainOrder(100, 100, 1).rows(0), TrainOrder(100, 100, 1).rows(1)
    other_seed = TrainOrder(100, 100, 2).rows(0)
    for other in (second, other_seed, np.arange(100)):
        assert (first != other).sum() > 80  # two random orders of 100 agree in one place on average


def test_the_order_is_the_same_in_every_version() -> None:
    """A run resumed after an upgrade must not see a row twice; PCG64's raw stream is promised to stay."""
    assert TrainOrder(8, 8, 1).rows(0).tolist() == [2, 4, 7, 5, 0, 6, 3, 1]


@given(st.lists(st.integers(1, 50), max_size=70), worlds, micro_sizes, st.data())
def test_a_step_counts_every_row_once_on_any_world_size(
    lengths: list[int], world_size: int, micro_batch_size: int, data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.sampled_from(range(len(lengths))), max_size=40)) if lengths else []
    rows = np.array(chosen, np.int64)
    ranks = split_step(rows, np.array(lengths, np.int32), world_size=world_size, micro_batch_size=micro_batch_size)
    assert len(ranks) == world_size
    assert counted_rows(ranks) == Counter(chosen)
    # The fewest micro-steps that can hold the rows, equal on all ranks.
    assert {len(micro_batches) for micro_batches in ranks} == {-(-len(chosen) // (world_size * micro_batch_size))}
    for batch in [batch for micro_batches in ranks for batch in micro_batches]:
        assert 1 <= len(batch.rows) <= micro_batch_size
        assert batch.rows.dtype == np.int64 and batch.weights.dtype == np.float32
        assert set(batch.weights) <= {0, 1}
        assert set(batch.rows) <= set(chosen)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=70), worlds, micro_sizes)
def test_evaluation_scores_every_row_once(lengths: list[int], world_size: int, batch_size: int) -> None:
    ranks = evaluation_batches(np.array(lengths, np.int32), world_size=world_size, batch_size=batch_size)
    assert counted_rows(ranks) == Counter(range(len(lengths)))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=70), worlds, micro_sizes)
def test_micro_batches_partition_the_rows_by_length(lengths: list[int], world_size: int, batch_size: int) -> None:
    """In the order they run, the shortest row of one is at least as long as the longest of the next: no less pads."""
    ranks = evaluation_batches(np.array(lengths, np.int32), world_size=world_size, batch_size=batch_size)
    by_time = [ranks[rank][step] for step in range(len(ranks[0])) for rank in range(world_size)]
    ordered = [lengths[row] for batch in by_time for row in batch.rows[batch.weights == 1]]
    assert ordered == sorted(lengths, reverse=True)


@given(orders, st.integers(0, 5), worlds, worlds)
def test_the_rows_of_a_step_do_not_depend_on_the_world_size(order: TrainOrder, step: int, one: int, other: int) -> None:
    lengths = np.arange(order.num_rows) % 7 + 1
    steps = [
        split_step(order.rows(step), lengths, world_size=world_size, micro_batch_size=4) for world_size in (one, other)
    ]
    assert counted_rows(steps[0]) == counted_rows(steps[1])


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(1, 3), st.integers(3, 9))
def test_the_largest_micro_batch_is_as_small_as_any_cut_makes_it(
    lengths: list[int], world_size: int, most: int
) -> None:
    ranks = split_step(np.arange(len(lengths)), np.array(lengths), world_size=world_size, micro_batch_size=most)
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
