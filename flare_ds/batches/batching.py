"""A step's or a split's rows cut into micro-batches of similar lengths, equally many on every rank.

Legend: N rows of a split, B rows of a step, m rows of a micro-batch.
"""

from dataclasses import dataclass

import numpy as np

from flare_ds.batches.cutting import cut, cut_evenly


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
    rows: np.ndarray,
    lengths: np.ndarray,
    *,
    world_size: int,
    micro_batch_size: int,
    micro_batch_tokens: int | None = None,
) -> list[list[MicroBatch]]:
    """Share the rows of a step among ranks and micro-steps.

    All ranks get the same number of micro-steps, the fewest that hold the rows. Rows are sorted by length, so that a
    micro-batch pads little; the longest come first, so that a step that does not fit into memory fails at once. Long
    rows share a micro-batch with fewer others than short ones, so that the ranks work equally long: the cuts make the
    largest micro-batch, in padded tokens, as small as it can be. A rank that would have nothing to do repeats the
    shortest row with weight 0.

    Args:
        rows: row numbers, int64 [B]; one that occurs twice counts twice.
        lengths: length in tokens of every row of the split, not only of these: int [N].
        world_size: number of ranks.
        micro_batch_size: most rows in a micro-batch.
        micro_batch_tokens: most padded tokens in a micro-batch (None: any number); a longer row goes alone.

    Returns:
        For each rank, its micro-batches in order.
    """
    sorted_B = rows[np.argsort(-lengths[rows], kind="stable")]
    lengths_B = lengths[sorted_B].tolist()
    fewest = len(cut(lengths_B, tokens=micro_batch_tokens, rows=micro_batch_size))
    num_slots = -(-fewest // world_size) * world_size
    pieces = cut_evenly(lengths_B, num_slots, tokens=micro_batch_tokens, rows=micro_batch_size)
    return _dealt([_micro_batch(sorted_B[start:end]) for start, end in pieces], world_size)


def evaluation_batches(
    lengths: np.ndarray, *, world_size: int, batch_size: int, batch_tokens: int | None = None
) -> list[list[MicroBatch]]:
    """Share all rows of a split among ranks, each row once.

    The micro-batches are cut before they are shared, so a row is in the same one, beside the same rows and as much
    padding, on any number of ranks: what the model says of it does not depend on how many there are. They are dealt
    like cards, the largest first, so that ranks that run side by side have about equally much to do.

        micro-batches, by padded tokens     a b c d e f g
        on three ranks                      a d g | b e . | c f .       . a filler of weight 0

    What is given and returned is as for `split_step`.
    """
    (batches,) = split_step(
        np.arange(len(lengths)),
        lengths,
        world_size=1,
        micro_batch_size=batch_size,
        micro_batch_tokens=batch_tokens,
    )
    batches.sort(key=lambda batch: -len(batch.rows) * int(lengths[batch.rows[0]]))
    return _dealt(batches, world_size)


def _dealt(batches: list[MicroBatch], world_size: int) -> list[list[MicroBatch]]:
    """Deal micro-batches to ranks in turn; a rank left without one repeats a row of the last with weight 0."""
    fillers = [_filler(batches[-1].rows[-1]) for _ in range(-len(batches) % world_size)]
    return [[*batches, *fillers][rank::world_size] for rank in range(world_size)]


def _micro_batch(rows_m: np.ndarray) -> MicroBatch:
    return MicroBatch(rows_m.astype(np.int64), np.ones(len(rows_m), np.float32))


def _filler(row: np.integer) -> MicroBatch:
    return MicroBatch(np.array([row], np.int64), np.zeros(1, np.float32))
