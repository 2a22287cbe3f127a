"""One optimizer step of the cells of a job: micro-batch by micro-batch, those of all cells in one forward.

micro-batch j of the job  =  micro-batch j of every cell that has one
loss of the job           =  sum of the cells' own means: each adapter gets its own gradient
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from flare_ds.batches.collate import Batch
from flare_ds.batches.joined import JointBatch, join
from flare_ds.models.joint import JointModel
from flare_ds.runtime.engine import Engine
from flare_ds.runtime.process_group import added_up, gather_objects, rank
from flare_ds.tracking.figures import PARTS
from flare_ds.training.cell import Cell
from flare_ds.training.feed import Portion
from flare_ds.training.schedule import learning_rate


def take_step(
    engine: Engine, cells: Sequence[Cell], wishes: Callable[[], Mapping[str, bool]]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Take the next step of some cells.

    Args:
        engine: that trains them.
        cells: which; at the same step or not.
        wishes: what this rank wishes to be done after the step, asked when its work is done.

    Returns:
        What is recorded of each; and how many ranks have each wish. Where a step could not be applied, `skipped_rows`
        are the ids of the rows it may be due to: those of the micro-batches whose loss is not finite, or all of the
        step's.
    """
    # Dropout of this step, whatever came before.
    engine.model.seed({c.number: hash((c.config.train.seed, c.progress.step, rank())) % 2**63 for c in cells})
    engine.root.train()
    tallies, watch, before = {cell: _Tally() for cell in cells}, _Watch(), engine.gathered()
    for portions in _portions(cells):
        watch.lap("data_seconds")
        losses = engine.accumulate(
            _batch(engine, portions).to(engine.device),
            targets=[cell.feed.targets(cell.progress.step) for cell in portions],
            last=all(portion.last for portion in portions.values()),
            forwarded=partial(watch.lap, "forward_seconds"),
        )
        for (cell, portion), loss in zip(portions.items(), losses, strict=True):
            tallies[cell].add(portion, loss)
        watch.lap("backward_seconds")
    watch.lap("data_seconds")  # the first rows of the next step
    wished, nothing = wishes(), dict[str, bool]()
    for place, tally in enumerate(tallies.values()):
        tally.over_ranks(nothing if place else wished)
    rates = {c.number: learning_rate(c.progress.step, c.config.train, steps=c.steps) for c in cells}
    norms = engine.step(rates)
    watch.lap("optimizer_seconds")
    gathered = {name: count - before[name] for name, count in engine.gathered().items()}
    parts = {name: spent / len(cells) for name, spent in (watch.spent | gathered).items()}
    found = [_values(cell, tallies[cell], rates[cell.number], norms[cell.number]) | parts for cell in cells]
    return found, {name: found[0].pop(name) for name in wished}


def _portions(cells: Sequence[Cell]) -> Iterator[dict[Cell, Portion]]:
    """The micro-batches of a step, of every cell that has one yet."""
    for portions in zip_longest(*(cell.feed.portions(cell.progress.step) for cell in cells)):
        yield {cell: portion for cell, portion in zip(cells, portions, strict=True) if portion is not None}


def _batch(engine: Engine, portions: Mapping[Cell, Portion]) -> Batch | JointBatch:
    if isinstance(engine.model, JointModel):
        batches = {cell.number: portion.batch for cell, portion in portions.items()}
        return join(batches, {cell.number: cell.config.recipe for cell in portions})
    (portion,) = portions.values()
    return portion.batch


def _values(cell: Cell, tally: "_Tally", rate: float, norm: float | None) -> dict[str, Any]:
    """What is recorded of a cell's step."""
    values: dict[str, Any] = tally.read()
    rows, targets = cell.feed.rows(cell.progress.step), cell.feed.targets(cell.progress.step)
    values |= {"loss": values["loss"] / targets, "learning_rate": rate, "grad_norm": norm, "examples": len(rows)}
    if norm is not None:
        return values
    found = tally.suspects() or rows.tolist()
    return {**values, "skipped_rows": [cell.cache.split("train").ids(row) for row in found]}


class _Tally:
    """What a step adds up to, over its micro-batches and all ranks: on the device, in one reduction, read once."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.rows: list[list[int]] = []
        self.counts: Counter[str] = Counter()

    def add(self, portion: Portion, loss: Tensor) -> None:
        """Note a micro-batch and its loss sum, which is not waited for."""
        self.losses.append(loss)
        self.rows.append(portion.rows)
        self.counts.update(portion.costs)

    def over_ranks(self, wishes: Mapping[str, bool]) -> None:
        """Add up losses, costs and what each rank wishes to be done after the step; a collective, not waited for."""
        self.counts.update(wishes)
        loss = torch.stack(self.losses).double().sum()
        # A float64 holds counts up to 9e15 exactly.
        counts = torch.tensor([*self.counts.values()], dtype=torch.float64).to(loss.device, non_blocking=True)
        self.sums = added_up(torch.cat([loss[None], counts]))

    def read(self) -> dict[str, float]:
        """The sums by name; waits for the device."""
        loss, *counts = self.sums.tolist()
        return {"loss": loss, **dict(zip(self.counts, map(int, counts), strict=True))}

    def suspects(self) -> list[int]:
        """Rows, of all ranks, of micro-batches whose loss is not finite; a collective that takes its time."""
        finite = torch.stack(self.losses).isfinite().tolist()
        mine = [row for rows, good in zip(self.rows, finite, strict=True) if not good for row in rows]
        return sorted(row for rows in gather_objects(mine) for row in rows)


class _Watch:
    """Sums up how long the host spends on the parts of a step; a GPU may still be at work."""

    def __init__(self) -> None:
        self.spent, self.since = dict.fromkeys(PARTS, 0.0), time.perf_counter()

    def lap(self, part: str) -> None:
        """What passed since the last one was spent on this part."""
        now = time.perf_counter()
        self.spent[part] += now - self.since
        self.since = now
