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

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, ValidationError, field_validator

from flare_ds.config import Config, TaskConfig
from flare_ds.config.section import Section, TypedPath
from flare_ds.exceptions import ConfigError, DataError, together
from flare_ds.methods import METHODS
from flare_ds.overrides import apply_overrides, is_text
from flare_ds.paths import expanded
from flare_ds.registry import suggestion
from flare_ds.runs import RunDirectory
from flare_ds.settings import explain, parse_config
from flare_ds.tasks.load import check_languages, task_of
from flare_ds.yaml_file import read_yaml

_SECTIONS = ("model", "task", "translate", "source", "adapter", "mixup", "train", "evaluate", "generate")
_GRID_OR_BASE = "grid.languages, base.task.source_language"
_LAUNCHERS = ("deepspeed", "torchrun", "accelerate", "python")
_SET_BY_SWEEP = ("method", "run_dir", "task.target_language", "train.seed")  # the last not for stage 1


class Grid(Section):
    """A cell for each combination; a method that trains nothing gets one cell a language, under the first seed."""

    languages: list[str] = Field(min_length=1, description="target languages")
    methods: list[str] = Field(min_length=1, description="methods, in the order they run")
    seeds: list[NonNegativeInt] = Field(min_length=1, description="training seeds")

    @field_validator("languages", "methods", "seeds")
    @classmethod
    def _no_repeats(cls, values: list[Any]) -> list[Any]:
        if len(set(values)) < len(values):
            raise ValueError(f"{values} names a cell twice; keep each value once")
        return values

    @field_validator("languages")
    @classmethod
    def _names_of_directories(cls, languages: list[str]) -> list[str]:
        for language in languages:
            if not re.fullmatch(r"\w[\w.@-]*", language):
                raise ValueError(f"{language!r:.200} is no code of a language; write codes such as pl or pt-BR")
        return languages

    def cells(self) -> Iterator[tuple[str, str, int]]:
        """Language, method and seed of each cell, in the order they run."""
        for language in self.languages:
            for method in self.methods:
                for seed in self.seeds if METHODS.get(method).trains else self.seeds[:1]:
                    yield language, method, seed


class SweepConfig(Section):
    """The sweep YAML as it is written."""

    base: dict[str, Any] = Field(description="settings of every run")
    out: TypedPath = Field(description="directory of the sweep")
    launch: str = Field(min_length=1, description="how a distributed command starts")
    stage1: dict[str, Any] | None = Field(None, description="settings that differ for the task adapter")
    grid: Grid
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict, description="settings that differ by method")

    @field_validator("launch")
    @classmethod
    def _starts_a_module(cls, launch: str) -> str:
        try:
            words = launch_words(launch)
        except ConfigError as error:
            raise ValueError(f"launch={launch!r}: {error.problem}; {error.fix}") from None
        except ValueError as error:
            raise ValueError(f"launch={launch!r} is no command: {error}; close the quotes") from None
        if not words or (Path(words[0]).name.startswith(_LAUNCHERS) and words[-1] not in ("--module", "-m")):
            problem = f"launch={launch!r} does not end in --module, but `flare_ds train CONFIG` is appended to it"
            raise ValueError(f"{problem}; end it in --module (deepspeed, torchrun) or -m (python, accelerate)")
        return launch


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
    path = Path(expanded(str(path)))
    settings = read_yaml(path)
    apply_overrides(settings, overrides, is_text_in_sweep)
    _check_sections(settings, str(path))
    try:
        config = SweepConfig.model_validate(settings)
    except ValidationError as error:
        raise explain(error, SweepConfig, str(path)) from None
    _check_places(config, str(path))
    plan = _resolve(config, str(path))
    wrong = {error.problem: error for run in plan.runs for error in _wrong_languages(run)}
    if wrong:
        raise together([*wrong.values()], str(path))
    return plan


def launch_words(launch: str) -> tuple[str, ...]:
    """The first words of a distributed command; `~` and `$VAR` filled in, as a shell would.

    Raises:
        ConfigError: a word names a variable that is not set.
        ValueError: it has a quote that is not closed.
    """
    return tuple(expanded(word) if word.startswith(("~", "$")) else word for word in shlex.split(launch))


def is_text_in_sweep(path: Sequence[str]) -> bool:
    """Whether a setting of a sweep, its key given as its parts, is a text."""
    inner = {"base": 1, "stage1": 1, "methods": 2}.get(path[0], 0)
    return is_text(Config if inner else SweepConfig, path[inner:])


def _check_sections(settings: Mapping[str, Any], origin: str) -> None:
    """Refuse the settings of a run where those of the sweep belong."""
    wrong = []
    for name in sorted(str(name) for name in Config.model_fields.keys() & settings.keys()):
        inner = settings[name]
        key = f"{name}.{next(iter(inner))}" if isinstance(inner, dict) and inner else name
        fix = f"it follows from out and grid: remove {key}" if key in _SET_BY_SWEEP else f"write it as base.{key}"
        wrong.append(ConfigError(f"{key} is a setting of a run, not of the sweep {origin}", fix=fix))
    if wrong:
        raise together(wrong, origin)


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
    return Plan(out, launch_words(config.launch), stage1, base, tuple(cells))


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
    """Refuse an unknown method, and settings that the sweep would silently overwrite; tell those it will not read."""
    wrong = [
        ConfigError(
            f"unknown method {method!r:.200} in {origin} (grid.methods, methods)", fix=suggestion(method, METHODS)
        )
        for method in dict.fromkeys((*config.grid.methods, *config.methods))
        if method not in METHODS
    ]
    wrong += _misplaced("base", config.base, _SET_BY_SWEEP, origin)
    wrong += _misplaced("stage1", config.stage1 or {}, _SET_BY_SWEEP[:-1], origin)
    for method, settings in config.methods.items():
        wrong += _misplaced(f"methods.{method}", settings, _SET_BY_SWEEP, origin)
    if wrong:
        raise together(wrong, origin)
    for method in config.methods.keys() - set(config.grid.methods):
        print(f"flare-ds: methods.{method} in {origin} is not used: {method} is not in grid.methods", file=sys.stderr)


def _misplaced(place: str, settings: dict[str, Any], set_by_sweep: Sequence[str], origin: str) -> Iterator[ConfigError]:
    for section in _SECTIONS:
        if not isinstance(settings.get(section, {}), dict):
            problem = f"{place}.{section}={settings[section]!r:.200} in {origin} is not a section"
            yield ConfigError(problem, fix=f"write the settings of {section} below it, indented")
    for name in set_by_sweep:
        section, _, leaf = name.rpartition(".")
        holder = settings.get(section, {}) if section else settings
        if isinstance(holder, dict) and leaf in holder:
            yield ConfigError(
                f"{place}.{name}={holder[leaf]!r:.200} in {origin}, but the sweep sets {name} for each run",
                fix=f"remove it; {name} follows from out and grid",
            )


def _wrong_languages(run: PlannedRun) -> Iterator[ConfigError]:
    config = run.config.task
    try:
        check_languages(task_of(config), config)
    except DataError as error:
        yield ConfigError(f"{error.problem} ({_GRID_OR_BASE})", fix=error.fix)
