"""The order of the examples: none lost or repeated over an epoch, on any number of ranks, wherever a run resumes."""

import gc
import math
import weakref
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare_ds.batches.batching import split_step
from flare_ds.batches.order import NamedOrder, Order, RowOrder, TokenOrder, name_keys

worlds = st.integers(1, 9)
seeds = st.integers(0, 2**32)
row_orders = st.builds(RowOrder, st.integers(1, 60), st.integers(1, 40), seeds)


def named(names: list[str], batch_size: int, seed: int) -> NamedOrder:
    return NamedOrder(len(names), batch_size, seed, name_keys(names))


named_orders = st.builds(named, st.lists(st.text(), min_size=1, max_size=60, unique=True), st.integers(1, 40), seeds)


@st.composite
def token_orders(draw: st.DrawFn) -> TokenOrder:
    lengths = draw(st.lists(st.integers(1, 300), min_size=1, max_size=60))
    return TokenOrder(np.array(lengths, np.int32), draw(st.integers(max(lengths), 4 * max(lengths))), draw(seeds))


def again(order: Order) -> Order:
    """As another process would make it: nothing is remembered."""
    if isinstance(order, NamedOrder):
        return NamedOrder(order.num_rows, order.batch_size, order.seed, order.keys_N.copy())
    if isinstance(order, RowOrder):
        return RowOrder(order.num_rows, order.batch_size, order.seed)
    return TokenOrder(order.lengths, order.tokens, order.seed)


def num_rows(order: Order) -> int:
    return order.num_rows if isinstance(order, RowOrder) else len(order.lengths)


def trained_rows(order: Order, steps: range, world_size: int, lengths: np.ndarray) -> Iterator[list[int]]:
    """The rows that count in each step, put together from what every rank does."""
    for step in steps:
        ranks = split_step(order.rows(step), lengths, world_size=world_size, micro_batch_size=5, micro_batch_tokens=400)
        assert len({len(micro_batches) for micro_batches in ranks}) == 1, "the ranks run equally many micro-steps"
        batches = [batch for micro_batches in ranks for batch in micro_batches]
        yield [int(row) for batch in batches for row in batch.rows[batch.weights == 1]]


@given(row_orders | named_orders | token_orders(), st.integers(0, 20), worlds, worlds)
def test_an_epoch_has_every_row_once_wherever_a_run_resumes_on_other_ranks(
    order: Order, resumed_at: int, before: int, after: int
) -> None:
    count = num_rows(order)
    lengths = np.arange(count) * 7 % 90 + 1
    steps = 2 * math.ceil(order.steps_per_epoch) + resumed_at
    parts = [*trained_rows(order, range(resumed_at), before, lengths)]
    parts += [*trained_rows(again(order), range(resumed_at, steps), after, lengths)]
    assert [sorted(part) for part in parts] == [sorted(again(order).rows(step)) for step in range(steps)]
    if isinstance(order, TokenOrder):  # an epoch is whole steps
        ends = [sum(map(len, parts[: epoch * order.steps_per_epoch])) for epoch in (1, 2)]
        assert ends == [count, 2 * count]
    in_order = [int(row) for step in range(steps) for row in order.rows(step)]
    for epoch in range(len(in_order) // count):
        assert sorted(in_order[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(row_orders, st.integers(0, 20))
def test_a_step_has_the_batch_size(order: RowOrder, step: int) -> None:
    rows = order.rows(step)
    assert rows.shape == (order.batch_size,)
    assert rows.dtype == np.int64


def bucket(length: int) -> int:
    """Rounded up to a number of four binary digits and zeros."""
    return next(digits << zeros for zeros in range(30) for digits in range(16) if digits << zeros >= length)


@given(token_orders(), st.integers(0, 3))
def test_the_plan_against_a_slow_one(order: TokenOrder, epoch: int) -> None:
    """One row after another: the step takes it if the budget holds all its rows as long as the longest one counts."""
    lengths = order.lengths.tolist()
    counts_as = {
        row: max(other for other in lengths if bucket(other) == bucket(lengths[row])) for row in range(len(lengths))
    }
    steps = order.steps_per_epoch
    found = [order.rows(epoch * steps + step).tolist() for step in range(steps)]
    assert all(rows and len(rows) * max(counts_as[row] for row in rows) <= order.tokens for rows in found)
    expected: list[list[int]] = []
    for length in sorted(counts_as.values(), reverse=True):
        if not expected or (len(expected[-1]) + 1) * expected[-1][0] > order.tokens:
            expected.append([])
        expected[-1].append(length)
    assert Counter(tuple(sorted((counts_as[row] for row in rows), reverse=True)) for rows in found) == Counter(
        map(tuple, expected)
    )
    assert max(counts_as[row] / lengths[row] for row in counts_as) <= 9 / 8


def test_epochs_and_seeds_shuffle_differently() -> None:
    lengths = np.full(100, 5)
    for first, second, other_seed in (
        [RowOrder(100, 100, 1).rows(0), RowOrder(100, 100, 1).rows(1), RowOrder(100, 100, 2).rows(0)],
        [TokenOrder(lengths, 500, 1).rows(0), TokenOrder(lengths, 500, 1).rows(1), TokenOrder(lengths, 500, 2).rows(0)],
    ):
        for other in (second, other_seed, np.arange(100)):
            assert (first != other).sum() > 80  # two random orders of 100 agree in one place on average


def test_rows_of_similar_length_meet_others_in_the_next_epoch() -> None:
    order = TokenOrder(np.arange(97, 105).repeat(8), 8 * 104, seed=1)
    first, second = ({frozenset(order.rows(8 * epoch + step).tolist()) for step in range(8)} for epoch in (0, 1))
    assert order.steps_per_epoch == len(first) == 8 and not first & second


def test_long_and_short_steps_come_mixed() -> None:
    order = TokenOrder(np.arange(1, 1001), 2000, seed=3)
    longest = [order.lengths[order.rows(step)].max() for step in range(2 * order.steps_per_epoch)]
    first, second = np.split(np.array(longest), 2)
    assert (first != second).sum() > 0.8 * len(first)
    for epoch in (first, second):
        assert abs(np.corrcoef(np.arange(len(epoch)), epoch)[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (RowOrder(8, 8, 1), [[2, 4, 7, 5, 0, 6, 3, 1]]),
        (TokenOrder(np.array([9, 1, 9, 1, 9, 1, 8]), 18, 1), [[0, 6], [2, 4], [5, 3, 1], [4, 6], [5, 3, 1], [0, 2]]),
    ],
)
def test_the_order_is_the_same_in_every_version(order: Order, expected: list[list[int]]) -> None:
    """A run resumed after an upgrade must not see a row twice; PCG64's raw stream is promised to stay."""
    assert [order.rows(step).tolist() for step in range(len(expected))] == expected


def padding(order: Order, lengths: np.ndarray) -> float:
    """Padded tokens over tokens of an epoch of micro-batches of at most 4,096 tokens on two ranks."""
    padded = 0
    for step in range(math.ceil(order.steps_per_epoch)):
        for micro_batches in split_step(
            order.rows(step), lengths, world_size=2, micro_batch_size=64, micro_batch_tokens=4096
        ):
            padded += sum(len(batch.rows) * int(lengths[batch.rows].max()) for batch in micro_batches)
    return padded / lengths.sum()


def test_steps_of_similar_lengths_pad_little() -> None:
    lengths = np.exp(np.random.default_rng(0).normal(4.5, 0.6, 20_000)).astype(int).clip(8, 1000)
    tokens = 16_384
    mixed = RowOrder(len(lengths), tokens // int(lengths.mean()), seed=1)
    similar = TokenOrder(lengths, tokens, seed=1)
    assert padding(similar, lengths) < 1.05 < 1.2 < padding(mixed, lengths)
    filled = [lengths[similar.rows(step)].sum() / tokens for step in range(similar.steps_per_epoch)]
    assert np.mean(filled) > 0.9


@given(st.integers(1, 40), seeds, st.sets(st.integers(0, 99), max_size=5))
def test_splits_that_share_rows_have_them_at_nearly_the_same_places(
    batch_size: int, seed: int, lacked: set[int]
) -> None:
    """In each epoch by name, whatever the number of a row: what one split lacks only moves the rows behind it up."""
    names = [f"row {number}" for number in range(100)]
    some = [name for number, name in reversed(list(enumerate(names))) if number not in lacked]
    epochs = []
    for own in (names, some):
        order = named(own, batch_size, seed)
        epochs.append([own[row] for row in order._epoch(1)])
        assert order.rows(3).tolist() == again(order).rows(3).tolist()
    assert [name for name in epochs[0] if name in set(some)] == epochs[1]
    assert epochs[0] != [names[row] for row in named(names, batch_size, seed)._epoch(2)]


def orders_of(kind: str, count: int) -> list[Order]:
    """Orders of runs that train together."""
    lengths, names = np.arange(300) % 50 + 1, [str(number) for number in range(300)]
    by_kind = {"rows": RowOrder, "names": lambda *given: named(names, *given[1:])}
    if kind == "tokens":
        return [TokenOrder(lengths, 500, seed) for seed in range(count)]
    return [by_kind[kind](300, 16, seed) for seed in range(count)]


@pytest.mark.parametrize("kind", ["rows", "names", "tokens"])
def test_a_step_sorts_nothing_while_several_orders_take_turns(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = orders_of(kind, 6)
    ahead = math.ceil(orders[0].steps_per_epoch)
    sorts: list[int] = []
    argsort = np.argsort
    monkeypatch.setattr(np, "argsort", lambda keys, **how: sorts.append(len(keys)) or argsort(keys, **how))

    def take_turns(steps: range) -> int:
        sorts.clear()
        for step in steps:
            for order in orders:
                for asked in (step, step + ahead, step):  # a step, one of the next epoch, that step again
                    order.rows(asked)
        return len(sorts)

    an_epoch = 3 if kind == "tokens" else 1  # the shuffle, the buckets, the steps
    assert take_turns(range(1)) == an_epoch * 2 * len(orders)
    assert take_turns(range(1, ahead // 2)) == 0


@pytest.mark.parametrize("kind", ["rows", "names", "tokens"])
def test_no_more_than_two_epochs_are_kept_and_none_of_a_finished_run(kind: str) -> None:
    orders = orders_of(kind, 1)

    def epoch(number: int) -> weakref.ref:
        rows = orders[0]._epoch(number)
        return weakref.ref(rows[0] if kind == "tokens" else rows)

    epochs = [epoch(number) for number in range(5)]
    assert [alive() is not None for alive in epochs] == [False, False, False, True, True]
    orders.clear()
    gc.collect()
    assert not any(alive() is not None for alive in epochs)
