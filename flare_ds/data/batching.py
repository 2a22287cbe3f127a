"""Which rows each rank sees in each step: a seeded order, and a step cut into micro-batches of similar lengths.

The rows of a step depend on the seed and the step number alone, so a run resumes anywhere, on any number of ranks.

Shapes: N rows of a split, B rows of a step, m rows of a micro-batch.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class TrainOrder:
    """An endless shuffled order of rows: each epoch is a permutation, and batches run on across epochs."""

    num_rows: int
    batch_size: int
    seed: int

    def rows(self, step: int) -> np.ndarray:
        """Rows of a step, counted from 0: int64 [B]. Needs nothing of the steps before."""
        assert step >= 0
        positions_B = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs_B, places_B = np.divmod(positions_B, self.num_rows)
        parts = [
            _permutation(self.num_rows, self.seed, int(epoch))[places_B[epochs_B == epoch]]
            for epoch in np.unique(epochs_B)
        ]
        return np.concatenate(parts)


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass on one rank.

    Attributes:
        rows: row numbers in the split, longest first: int64 [m].
        weights: 1 for a row that counts, 0 for a filler that only keeps the ranks in step: float32 [m].
    """

    rows: np.ndarray
    weights: np.ndarray


def split_step(
    rows: np.ndarray, lengths: np.ndarray, *, world_size: int, micro_batch_size: int
) -> list[list[MicroBatch]]:
    """Share the rows of a step among ranks and micro-steps.

    All ranks get the same number of micro-steps, the fewest that hold the rows. Rows are sorted by length, so that a
    micro-batch pads little; the longest come first, so that a step that does not fit into memory fails at once. Long
    rows share a micro-batch with fewer others than short ones, so that the ranks work equally long: the cuts make the
    largest micro-batch, in padded tokens, as small as it can be. A rank that would have nothing to do repeats the
    shortest row with weight 0.

    Args:
        rows: row numbers, int64 [B]; one that occurs twice counts twice.
        lengths: length in tokens of every row of the split, not only of these: int32 [N].
        world_size: number of ranks.
        micro_batch_size: most rows in a micro-batch.

    Returns:
        For each rank, its micro-batches in order.
    """
    sorted_B = rows[np.argsort(-lengths[rows], kind="stable")]
    micro_steps = -(-len(rows) // (world_size * micro_batch_size))
    num_slots = micro_steps * world_size
    cuts = _balanced_cuts(lengths[sorted_B].tolist(), num_slots, micro_batch_size)
    slots = [_micro_batch(sorted_B[start:end], filler=sorted_B[-1]) for start, end in cuts]
    return [slots[rank::world_size] for rank in range(world_size)]


def evaluation_batches(lengths: np.ndarray, *, world_size: int, batch_size: int) -> list[list[MicroBatch]]:
    """Share all rows of a split among ranks, each row once; see `split_step`.

    Args:
        lengths: length in tokens of every row: int32 [N].
        world_size: number of ranks.
        batch_size: most rows in a batch.
    """
    return split_step(np.arange(len(lengths)), lengths, world_size=world_size, micro_batch_size=batch_size)


def _balanced_cuts(lengths: list[int], num_slots: int, most: int) -> list[tuple[int, int]]:
    """Cut descending lengths into consecutive slots whose largest (rows times longest) is smallest."""
    if not num_slots:
        return []
    low, high = lengths[0], lengths[0] * most
    while low < high:
        budget = (low + high) // 2
        fits = _cuts_within(budget, lengths, num_slots, most)[-1][1] == len(lengths)
        low, high = (low, budget) if fits else (budget + 1, high)
    return _cuts_within(low, lengths, num_slots, most)


def _cuts_within(budget: int, lengths: list[int], num_slots: int, most: int) -> list[tuple[int, int]]:
    """Fill slot after slot with as many rows as `most` and the budget of padded tokens allow."""
    cuts, start = [], 0
    for _ in range(num_slots):
        room = min(most, budget // lengths[start]) if start < len(lengths) else 0
        cuts.append((start, min(start + room, len(lengths))))
        start = cuts[-1][1]
    return cuts


def _micro_batch(rows_m: np.ndarray, filler: np.integer) -> MicroBatch:
    if len(rows_m) == 0:
        return MicroBatch(np.array([filler], np.int64), np.zeros(1, np.float32))
    return MicroBatch(rows_m.astype(np.int64), np.ones(len(rows_m), np.float32))


@lru_cache(maxsize=4)
def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """Sorting raw generator output: numpy promises this stream forever, unlike that of `Generator.permutation`."""
    keys = np.random.PCG64([seed, epoch]).random_raw(num_rows)
    return np.argsort(keys, kind="stable")
