"""Finding the runs below a directory: links are followed once, foreign and hidden ones passed by, damaged ones told."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flare_ds.exceptions import ConfigError, DataError, FlareError
from flare_ds.runs.directory import CACHE, CONFIG, METRICS
from flare_ds.runs.result import RunResult
from flare_ds.settings import saved_config
from flare_ds.yaml_file import read_yaml

_OURS = ("method", "run_dir", "deepspeed", "model", "task")
"""Sections that every saved config has, and that no other program's has all of."""

_WATCHED = ("wandb", "mlruns")
"""Folders of a run in which other programs keep its settings, as a config.yaml of theirs."""


@dataclass(frozen=True)
class Unreadable:
    """A run that is there but cannot be read, and why."""

    directory: Path
    problem: str


def find_runs(directory: Path) -> tuple[list[RunResult], list[Unreadable]]:
    """All run directories below (and at) `directory`, finished or not, by path; and those that cannot be read.

    Raises:
        DataError: there are none.
    """
    runs: list[RunResult] = []
    unreadable: list[Unreadable] = []
    for place in run_directories(directory):
        try:
            run = RunResult(place, saved_config(place))
            run.read_all()
            runs.append(run)
        except FlareError as error:
            unreadable.append(Unreadable(place, error.problem))
    return runs, unreadable


def run_directories(directory: Path) -> list[Path]:
    """All run directories below (and at) `directory`, damaged ones among them, by path.

    Raises:
        DataError: there are none.
    """
    places = [place for place in sorted(_directories(directory)) if _is_run(place)]
    if not places:
        raise DataError(f"no runs below {directory}", fix="check the path; a run directory holds a config.yaml")
    return places


def _directories(top: Path) -> Iterator[Path]:
    """Directories with a config.yaml; each once, by whichever links it is reached."""
    seen: set[tuple[int, int]] = set()
    for place, below, files in os.walk(top, followlinks=True):
        state = os.stat(place)
        if (state.st_dev, state.st_ino) in seen:
            below.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        below[:] = sorted(name for name in below if not name.startswith("."))  # what a sweep has moved aside
        if CONFIG in files:
            below[:] = [name for name in below if name not in _WATCHED]
            yield Path(place)


def _is_run(place: Path) -> bool:
    """Whether a config.yaml is a run's, damaged or not, and not that of another program."""
    if (place / CACHE).is_file() or (place / METRICS).is_file():
        return True
    try:
        settings = read_yaml(place / CONFIG)
    except ConfigError:
        return False
    return all(name in settings for name in _OURS)
