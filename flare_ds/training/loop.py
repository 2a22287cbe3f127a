"""The loop over the steps of a job: of one run alone, or of several cells over one base.

for step:  rows of the step (seeded, the same for any world size)
-> this rank's micro-batches -> forward, loss, backward each -> one clipped optimizer step
every validate_every: score the validation rows, keep the adapter if it is the best; after `patience` without: stop
every save_every steps, every save_seconds, and when asked to stop by a signal: write the trainer state

Cells go abreast, so that those who read the same rows read them together: one that was further than others waits. One
that has ended, or can go no further, leaves; the others go on.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from flare_ds.exceptions import NotFiniteError
from flare_ds.runtime.opening import open_engine, trains_whole
from flare_ds.runtime.process_group import rank
from flare_ds.runtime.signals import StopRequest, stopping
from flare_ds.runtime.watchdog import pace
from flare_ds.training.cell import Cell
from flare_ds.training.steps import take_step
from flare_ds.training.validation import see_abreast


def open_cells(cells: Sequence[Cell], spared: Callable[[], AbstractContextManager[None]] = nullcontext) -> list[Cell]:
    """Load the base with the adapters of cells that can join; a collective.

    Args:
        cells: at least one.
        spared: within which each is prepared; what it does not let through leaves that one out.

    Returns:
        Those that are open.

    Raises:
        HostError: a micro-batch does not fit into memory.
        FlareError: see `prepare_states` and `open_engine`.
    """
    first = cells[0]
    whole = trains_whole(first.config, first.shape, first.feed.load)
    able = list[Cell]()
    for cell in cells:
        with spared():
            cell.prepare()
            able.append(cell)
    if not able:
        return []
    engine = open_engine(
        [cell.config for cell in able],
        shape=first.shape,
        label_tokens=first.cache.label_tokens,
        whole=whole,
        adapters=[cell.saved_adapter for cell in able],
    )
    for number, cell in enumerate(able):
        cell.join(engine, number)
    return able


def train_cells(cells: Sequence[Cell]) -> list[NotFiniteError]:
    """Run the remaining steps of cells that share an engine, and write what each came to.

    Returns:
        Why some of them could not be trained to their end.

    Raises:
        ToBeContinued: a signal asked the training to stop; all states are saved.
    """
    with stopping() as stop, pace("training", anew=True) as beat:
        for cell in cells:
            cell.begin()
        new = [cell for cell in cells if cell.is_new]
        for cell, seen in zip(new, see_abreast([cell.validation for cell in new], untrained=True), strict=True):
            cell.score_start(seen)
        training = list(cells)
        while training:
            for cell in training:
                if not cell.goes_on:
                    cell.finish()
            training = [cell for cell in training if cell.goes_on]
            number = len(_abreast(training))
            if training and _step_abreast(training, stop) and any(cell.goes_on for cell in training):
                _leave(training, stop)
            beat(anew=len(_abreast([cell for cell in training if cell.goes_on])) > number)
    return [cell.failure for cell in cells if cell.failure is not None]


def _abreast(training: Sequence[Cell]) -> list[Cell]:
    """Those that have done the fewest steps, which take the next."""
    fewest = min((cell.progress.step for cell in training), default=0)
    return [cell for cell in training if cell.progress.step == fewest]


def _step_abreast(training: Sequence[Cell], stop: StopRequest) -> bool:
    """The next step; whether a rank was asked to stop."""
    abreast = _abreast(training)

    def wishes() -> dict[str, bool]:
        """One rank is enough, and only rank 0 looks at the clock."""
        return {"stop": bool(stop.signal), "save": rank() == 0 and any(cell.late for cell in abreast)}

    start = time.perf_counter()
    found, wished = take_step(abreast[0].engine, abreast, wishes)
    seconds = (time.perf_counter() - start) / len(abreast)
    for cell, values in zip(abreast, found, strict=True):
        cell.after_step(values, seconds)
    due = [cell for cell in abreast if cell.is_due]
    seen = dict(zip(due, see_abreast([cell.validation for cell in due]), strict=True))
    for cell in abreast:
        cell.look_back(seen.get(cell), save=any(wished.values()))
    return bool(wished["stop"])


def _leave(training: Sequence[Cell], stop: StopRequest) -> None:
    """Leave, as a signal asked any of the ranks to; the states are saved."""
    for cell in training:
        cell.records.close()
    able = [cell for cell in training if cell.failure is None]
    stops = [f"stopped after step {cell.progress.step} of {cell.steps}; {cell.run_dir} is saved" for cell in able]
    stop.leave_if_asked("; ".join(stops))
