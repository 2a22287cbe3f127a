"""Which cells of a plan are one command: those that train together over one base."""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise
from typing import Any

from flare_ds.sweep.plan import Plan, PlannedRun


def grouped(plan: Plan, jobs: int, done: Collection[str]) -> Iterator[tuple[PlannedRun, ...]]:
    """The cells, each with those that train together with it: of one base and source language.

    They are in the plan's order, but those of one data order come together, since they can read the same source texts.
    `auto` shares them out among the jobs, so that none is idle; those that are done are shared out by themselves. Which
    of them really join is found where they are trained (`flare_ds.training.together`).
    """
    for same in alike(plan.cells, lambda cell: (_joins(cell) if plan.together != 1 else cell.name, cell.name in done)):
        cells = sorted(same, key=lambda cell: cell.config.train.order_seed)
        if plan.together == "auto":
            parts = min(jobs, len(cells))
            bounds = [len(cells) * part // parts for part in range(parts + 1)]
        else:
            bounds = [*range(0, len(cells), plan.together), len(cells)]
        yield from (tuple(cells[first:end]) for first, end in pairwise(bounds))


def _joins(cell: PlannedRun) -> Any:
    config = cell.config
    return (cell.place, config.model, config.task.source_language) if config.recipe.trains else cell.name


def alike(runs: Sequence[PlannedRun], key: Callable[[PlannedRun], Any]) -> list[tuple[PlannedRun, ...]]:
    """Runs, those together that have a key in common."""
    groups: dict[Any, list[PlannedRun]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return [tuple(group) for group in groups.values()]
