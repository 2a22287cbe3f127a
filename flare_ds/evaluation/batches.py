"""Going over a split once: each row in one batch of one rank, whatever is asked of it.

All ranks run the same number of batches (filler rows weigh 0), as ZeRO-3's gathers demand.

Legend: n rows of the split.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from flare_ds.batches.batching import MicroBatch, evaluation_batches
from flare_ds.batches.collate import Batch, StoredStates, collate
from flare_ds.batches.rows_read import rows_read
from flare_ds.batches.workload import longest, streams_of
from flare_ds.config import Config
from flare_ds.data.row_answers import Rows
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.batch_size import batch_limits
from flare_ds.progress import bar
from flare_ds.runtime.engine import RunningModel
from flare_ds.runtime.process_group import gather_objects, rank, world_size
from flare_ds.runtime.signals import between_batches
from flare_ds.runtime.watchdog import pace

T = TypeVar("T")
Ask = Callable[[Batch, list[int]], Sequence[T]]
"""Runs the model on a batch, which it brings to its device; told its row numbers too, it gives one answer a row."""


def ask_each_row(ask: Ask[T], asked: Asked, split_name: str, *, written: int = 0) -> list[T]:
    """Ask something of every row of a split; a collective, with the same n answers, in cache order, on every rank.

    So many tokens are decoded (`written`) behind each row.
    """
    cache, config = asked.cache, asked.config
    return ask_rows(
        ask,
        asked.running,
        rows_read(cache.split(split_name), config, cache.manifest),
        config,
        streams=streams_of(config),
        what=split_name,
        written=written,
        pad_id=cache.pad_id,
        stored=None if asked.states is None else asked.states.split(split_name),
    )


def ask_rows(
    ask: Ask[T],
    running: RunningModel,
    rows: Rows,
    config: Config,
    *,
    streams: tuple[str, ...],
    what: str,
    objective: str = "labels",
    written: int = 0,
    pad_id: int = 0,
    stored: StoredStates | None = None,
) -> list[T]:
    """Ask something of any rows, as `ask_each_row` does of a cached split's.

    Args:
        ask: what is asked.
        running: the model that is asked.
        rows: as the method reads them.
        config: the run's settings.
        streams: those that run: sources, and last "target".
        what: what the rows are called while it lasts.
        objective: labels: a batch ends with the prompts; vocabulary: answers follow them.
        written: tokens that are decoded behind each row.
        pad_id: fills the padding.
        stored: the rows' source states, where they were computed before.
    """
    of_row = longest(rows.prompt_lengths if objective == "labels" else rows.lengths, streams)
    lengths_n, words = len(streams) * of_row, "vocabulary" in (objective, config.train.objective)
    size, tokens = batch_limits(running, rows, config, lengths_n, written=written, words=words)
    dealt = evaluation_batches(lengths_n, world_size=world_size(), batch_size=size, batch_tokens=tokens)

    def ask_batch(micro_batch: MicroBatch) -> Sequence[T]:
        batch = collate(
            rows,
            micro_batch,
            streams=streams,
            objective=objective,
            pad_id=pad_id,
            source_answers=config.fuses_answers,
            stored=stored,
        )
        return ask(batch, micro_batch.rows.tolist())

    return go_over(dealt[rank()], ask_batch, what=what, count=len(rows))


def go_over(
    batches: Sequence[MicroBatch], ask: Callable[[MicroBatch], Sequence[T]], *, what: str, count: int
) -> list[T]:
    """Ask something of each row of this rank's batches; a collective, see `ask_each_row`.

    Args:
        batches: as many as every other rank has.
        ask: gives an answer for each row of one.
        what: what the rows are called while it lasts.
        count: of the rows of all ranks.

    Raises:
        ToBeContinued: a signal asked to stop, see `leaving_between_batches`.
    """
    mine: list[tuple[int, T]] = []
    shown = bar(batches, desc=what, unit="batch", disable=rank() > 0 or len(batches) < 2, leave=False)
    with pace(f"going over the {what} rows", steady=False) as beat:
        for micro_batch in shown:
            answers = zip(micro_batch.rows.tolist(), ask(micro_batch), micro_batch.weights, strict=True)
            mine += [(row, answer) for row, answer, weight in answers if weight]
            between_batches()
            beat()
        return _in_order(mine, count)


def _in_order(mine: list[tuple[int, T]], count: int) -> list[T]:
    """The answers of all ranks, by row; a collective."""
    answered = [pair for part in gather_objects(mine) for pair in part]
    by_row = dict(answered)
    assert len(by_row) == len(answered) == count, "a row was asked twice or not at all"
    return [by_row[row] for row in range(count)]
