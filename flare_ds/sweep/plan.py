"""What a sweep will run: every run resolved and checked, before the first command starts."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flare_ds.config import Config, TaskConfig
from flare_ds.exceptions import ConfigError, DataError, together
from flare_ds.runs import RunDirectory
from flare_ds.settings import parse_config
from flare_ds.sweep.grid import SweepConfig, launch_words, read_sweep
from flare_ds.tasks.load import check_languages, task_of

_GRID_OR_BASE = "grid.languages, base.task.source_language"


@dataclass(frozen=True)
class PlannedRun:
    """One run of the sweep, resolved; its directory is `config.run_dir`."""

    name: str
    config: Config

    @property
    def directory(self) -> Path:
        """Where the run writes."""
        return Path(self.config.run_dir)

    @property
    def owner(self) -> RunDirectory:
        """Of that directory."""
        return RunDirectory(self.config.run_dir)


@dataclass(frozen=True)
class Plan:
    """The sweep, resolved: what will run, where, from which base.

    Attributes:
        out: directory of the sweep.
        launch: the first words of a command on several ranks.
        ranks: how many such a command starts itself, where `launch` does not.
        stage1: the run that tunes the task adapter, if the sweep has one.
        tuned_base: where stage 1 is merged to; the base of the cells if there is a stage 1.
        cells: in the order they run.
    """

    out: Path
    launch: tuple[str, ...]
    ranks: int | Literal["all"] | None
    stage1: PlannedRun | None
    tuned_base: Path
    cells: tuple[PlannedRun, ...]

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """Stage 1, if there is one, and the cells."""
        return (*((self.stage1,) if self.stage1 else ()), *self.cells)

    def command(self, *words: str) -> tuple[str, ...]:
        """The words that start a verb on several ranks."""
        ranks = () if self.ranks is None else ("--ranks", str(self.ranks))
        return (*self.launch, "flare_ds", *words, *ranks)


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a sweep YAML, apply `key=value` overrides, and resolve and check every run.

    Args:
        path: the YAML file.
        overrides: e.g. `["grid.languages=[pl, es]", "base.train.steps=10"]`.

    Raises:
        ConfigError: a setting of the sweep or of a run is unknown, mistyped, out of range or set in the wrong place,
            or the task lacks one of the languages.
    """
    config = read_sweep(path, overrides)
    plan = _resolve(config, str(path))
    wrong = {error.problem: error for run in plan.runs for error in _wrong_languages(run)}
    if wrong:
        raise together([*wrong.values()], str(path))
    return plan


def _resolve(config: SweepConfig, origin: str) -> Plan:
    out = Path(config.out)
    stage1 = None if config.stage1 is None else _stage1(config, out, origin)
    base = out.absolute() / "base"
    tuned: dict[str, Any] = {} if stage1 is None else {"model": {"base": str(base)}}
    cells = []
    for language, method, seed in config.grid.cells():
        name = f"{language}/{method}-seed{seed}"
        own = {"method": method, "run_dir": str(out / name)}
        place = {"task": {"target_language": language}, "train": {"seed": seed}}
        settings = _merged(config.base, tuned, config.methods.get(method, {}), own, place)
        cells.append(PlannedRun(name, parse_config(settings, origin=f"{origin}, cell {name}")))
    launch = (sys.executable, "-m") if config.launch is None else launch_words(config.launch)
    return Plan(out, launch, config.ranks, stage1, base, tuple(cells))


def _stage1(config: SweepConfig, out: Path, origin: str) -> PlannedRun:
    settings = _merged(config.base, config.stage1 or {}, {"method": "lora", "run_dir": str(out / "stage1")})
    default = TaskConfig.model_fields["source_language"].default
    language = settings.get("task", {}).get("source_language", default)
    alone = {"task": {"target_language": language, "extra_source_languages": []}, "evaluate": {"late": None}}
    settings = _merged(settings, alone)
    return PlannedRun("stage1", parse_config(settings, origin=f"{origin}, stage1"))


def _merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over one another; the later wins."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def _wrong_languages(run: PlannedRun) -> Iterator[ConfigError]:
    config = run.config.task
    try:
        check_languages(task_of(config), config)
    except DataError as error:
        yield ConfigError(f"{error.problem} ({_GRID_OR_BASE})", fix=error.fix)
