"""How far runs are, said from what lies in their directories; a damaged one is a line like the others.

planned   a sweep has written its settings          trained   not scored, or its scores are of another adapter
running   a process writes it                       scored    finished
stopped   begun, and no process writes it           damaged   it cannot be read
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flare_ds.exceptions import FlareError
from flare_ds.human import human_age
from flare_ds.markdown import DASH
from flare_ds.markdown import table as markdown_table
from flare_ds.runs.directory import METRICS, RunDirectory
from flare_ds.runs.find import run_directories
from flare_ds.runs.result import RunResult
from flare_ds.settings import saved_config

DAMAGED = "damaged"


@dataclass(frozen=True)
class Status:
    """One run.

    Attributes:
        directory: where it is.
        state: one word, see above.
        method: of its settings.
        languages: source and target.
        steps: done, and of how many.
        validation: the last score, and at which step.
        score: on the test rows, and by which metric.
        remark: who writes it, or what is wrong with it.
    """

    directory: Path
    state: str
    method: str = DASH
    languages: str = DASH
    steps: str = DASH
    validation: str = DASH
    score: str = DASH
    remark: str = ""

    @property
    def age(self) -> str:
        """How long ago something in it changed."""
        return human_age(time.time() - max(map(_changed, self.directory.iterdir())))


def statuses(directory: Path) -> list[Status]:
    """Every run below (and at) a directory.

    Raises:
        DataError: there is none.
    """
    return [_status(place) for place in run_directories(directory)]


def table(found: Sequence[Status], root: Path) -> str:
    """A line for each run, and how many there are of each state."""
    columns = ("run", "state", "method", "languages", "steps", "validation", "score", "changed", "")
    lines = [
        (
            str(one.directory.relative_to(root)) if one.directory != root else str(root),
            *(one.state, one.method, one.languages, one.steps, one.validation, one.score, f"{one.age} ago", one.remark),
        )
        for one in found
    ]
    states = Counter(one.state for one in found)
    said = ", ".join(f"{number} {state}" for state, number in states.items())
    return f"{markdown_table(columns, lines)}\n\n{len(found)} runs: {said}"


def _status(place: Path) -> Status:
    run = RunDirectory(place)
    try:
        config = saved_config(place)
        result = RunResult(place, config)
        log = result.train_log
        scored = result.metrics if (place / METRICS).is_file() else None
        trained = result.training if run.trained else None
    except FlareError as error:
        return Status(place, DAMAGED, remark=error.problem.partition("\n")[0])
    writer, task = run.writer, config.task
    beside = not config.recipe.trains and run.begun  # on other rows than the test's, which is all it is asked
    state = "scored" if run.finished or beside else "trained" if trained else "stopped" if run.begun else "planned"
    remark = f"{writer[0]}, seen {human_age(writer[1])} ago" if writer else ""
    if scored is not None and state == "trained":
        remark = remark or "its scores belong to another adapter"
    last = next((line for line in reversed(log) if "validation_score" in line), None)
    return Status(
        place,
        "running" if writer else state,
        config.method,
        " ".join([*task.source_languages, "→", task.target_language]) if config.has_source else task.target_language,
        _steps(max((line["step"] for line in log), default=0), trained, result),
        DASH if last is None else f"{last['validation_score']:.4f} at {last['step']}",
        f"{scored['metric']} {scored['score']:.4f}" if scored is not None and run.finished else DASH,
        remark,
    )


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # a file of a running run, gone by now
        return 0.0


def _steps(done: int, trained: Mapping[str, Any] | None, result: RunResult) -> str:
    """Steps done, and of how many; in epochs that is known once the run is trained."""
    if not result.config.recipe.trains:
        return DASH
    train = result.config.train
    if trained is not None:
        return f"{trained.get('steps', done)}" + (", stopped early" if trained.get("stopped_early") else "")
    return f"{done} of {train.steps}" if train.steps is not None else f"{done} ({train.epochs:g} epochs are asked for)"
