"""One YAML describes a sweep: what all runs share, the grid, and how a distributed command is started.

    base:     the settings of a run, without those the sweep sets itself
    out:      directory of the sweep
    launch:   e.g. "deepspeed --num_accelerators 2 --module"; " flare_ds train CONFIG" is appended, and {free_port}
              becomes a port that is free here
    stage1:   settings that differ for the task adapter (`{}`: none do); null: the base is tuned already
    grid:     languages, methods, seeds
    methods:  settings that differ by method

Every run is resolved and checked here, before the first command starts.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from flare_ds.config import Config, TaskConfig
from flare_ds.config.section import Section
from flare_ds.exceptions import ConfigError, DataError
from flare_ds.methods import METHODS
from flare_ds.registry import suggestion
from flare_ds.runs import RunDirectory
from flare_ds.settings import apply_override, explain, parse_config
from flare_ds.tasks.load import check_languages, task_of
from flare_ds.yaml_file import read_yaml

_SECTIONS = ("model", "task", "translate", "source", "adapter", "mixup", "train", "evaluate", "generate")
_SET_BY_SWEEP = ("method", "run_dir", "task.target_language", "train.seed")  # the last not for stage 1


class Grid(Section):
    """A cell for each combination; a method that trains nothing gets one cell a language, under the first seed."""

    languages: list[str] = Field(min_length=1, description="target languages")
    methods: list[str] = Field(min_length=1, description="methods, in the order they run")
    seeds: list[int] = Field(min_length=1, description="training seeds")

    @field_validator("languages", "methods", "seeds")
    @classmethod
    def _no_repeats(cls, values: list[Any]) -> list[Any]:
        if len(set(values)) < len(values):
            raise ValueError(f"{values} names a cell twice; keep each value once")
        return values

    def cells(self) -> Iterator[tuple[str, str, int]]:
        """Language, method and seed of each cell, in the order they run."""
        for language in self.languages:
            for method in self.methods:
                for seed in self.seeds if METHODS.get(method).trains else self.seeds[:1]:
                    yield language, method, seed


class SweepConfig(Section):
    """The sweep YAML as it is written."""

    base: dict[str, Any] = Field(description="settings of every run")
    out: str = Field(description="directory of the sweep")
    launch: str = Field(min_length=1, description="how a distributed command starts")
    stage1: dict[str, Any] | None = Field(None, description="settings that differ for the task adapter")
    grid: Grid
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict, description="settings that differ by method")


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
        launch: the first words of a distributed command.
        stage1: the run that tunes the task adapter, if the sweep has one.
        tuned_base: where stage 1 is merged to; the base of the cells if there is a stage 1.
        cells: in the order they run.
    """

    out: Path
    launch: tuple[str, ...]
    stage1: PlannedRun | None
    tuned_base: Path
    cells: tuple[PlannedRun, ...]

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """Stage 1, if there is one, and the cells."""
        return (*((self.stage1,) if self.stage1 else ()), *self.cells)


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a sweep YAML, apply `key=value` overrides, and resolve and check every run.

    Args:
        path: the YAML file.
        overrides: e.g. `["grid.languages=[pl, es]", "base.train.steps=10"]`.

    Raises:
        ConfigError: a setting of the sweep or of a run is unknown, mistyped, out of range or set in the wrong place,
            or the task lacks one of the languages.
    """
    settings = read_yaml(Path(path))
    for override in overrides:
        apply_override(settings, override)
    try:
        config = SweepConfig.model_validate(settings)
    except ValidationError as error:
        raise explain(error, SweepConfig, str(path)) from None
    _check_places(config, str(path))
    plan = _resolve(config, str(path))
    for run in plan.runs:
        _check_languages(run)
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
    return Plan(out, tuple(shlex.split(config.launch)), stage1, base, tuple(cells))


def _stage1(config: SweepConfig, out: Path, origin: str) -> PlannedRun:
    settings = _merged(config.base, config.stage1 or {}, {"method": "lora", "run_dir": str(out / "stage1")})
    default = TaskConfig.model_fields["source_language"].default
    language = settings.get("task", {}).get("source_language", default)
    settings = _merged(settings, {"task": {"target_language": language, "extra_source_languages": []}})
    return PlannedRun("stage1", parse_config(settings, origin=f"{origin}, stage1"))


def _merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over one another; the later wins."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def _check_places(config: SweepConfig, origin: str) -> None:
    """Refuse an unknown method, and settings that the sweep would silently overwrite."""
    for method in (*config.grid.methods, *config.methods):
        if method not in METHODS:
            raise ConfigError(f"unknown method {method!r} in {origin}", fix=suggestion(method, METHODS))
    _check_place("base", config.base, _SET_BY_SWEEP, origin)
    _check_place("stage1", config.stage1 or {}, _SET_BY_SWEEP[:-1], origin)
    for method, settings in config.methods.items():
        _check_place(f"methods.{method}", settings, _SET_BY_SWEEP, origin)


def _check_place(place: str, settings: dict[str, Any], set_by_sweep: Sequence[str], origin: str) -> None:
    for section in _SECTIONS:
        if not isinstance(settings.get(section, {}), dict):
            problem = f"{place}.{section}={settings[section]!r} in {origin} is not a section"
            raise ConfigError(problem, fix=f"write the settings of {section} below it, indented")
    for name in set_by_sweep:
        section, _, leaf = name.rpartition(".")
        holder = settings.get(section, {}) if section else settings
        if leaf in holder:
            raise ConfigError(
                f"{place}.{name}={holder[leaf]!r} in {origin}, but the sweep sets {name} for each run",
                fix=f"remove it; {name} follows from out and grid",
            )


def _check_languages(run: PlannedRun) -> None:
    config = run.config.task
    try:
        check_languages(task_of(config), config)
    except DataError as error:
        raise ConfigError(f"{error.problem} (run {run.name})", fix=error.fix) from None
