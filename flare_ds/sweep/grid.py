"""One YAML describes a sweep: what all runs share, the grid, and how a distributed command is started.

    base:     the settings of a run, without those the sweep sets itself
    out:      directory of the sweep
    ranks:    on how many ranks of this host each run works, or `all` for all GPUs
    launch:   instead, how ranks are started, e.g. "torchrun --nproc-per-node 2 -m"; " flare_ds train CONFIG" is
              appended, and {free_port} becomes a port that is free here
    stage1:   settings that differ for the task adapter (`{}`: none do); null: the base is tuned already
    grid:     languages, methods, seeds
    methods:  settings that differ by method

What it says of the sweep itself is checked here; `flare_ds.sweep.plan` makes runs of it.
"""

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, field_validator, model_validator

from flare_ds.config import Config
from flare_ds.config.section import Section, TypedPath
from flare_ds.exceptions import ConfigError, together
from flare_ds.methods import METHODS
from flare_ds.overrides import apply_overrides, is_text
from flare_ds.paths import expanded
from flare_ds.registry import suggestion
from flare_ds.settings import explain
from flare_ds.yaml_file import read_yaml

_SECTIONS = ("model", "task", "translate", "source", "adapter", "mixup", "train", "evaluate", "generate", "tracking")
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
    ranks: PositiveInt | Literal["all"] | None = Field(None, description="ranks of this host for each run, or all GPUs")
    launch: str | None = Field(None, min_length=1, description="how a command on several ranks starts, instead")
    stage1: dict[str, Any] | None = Field(None, description="settings that differ for the task adapter")
    grid: Grid
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict, description="settings that differ by method")

    @field_validator("launch")
    @classmethod
    def _starts_a_module(cls, launch: str | None) -> str | None:
        if launch is None:
            return None
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

    @model_validator(mode="after")
    def _one_way_to_start(self) -> "SweepConfig":
        if (self.ranks is None) == (self.launch is None):
            raise ValueError(
                f"ranks={self.ranks} and launch={self.launch!r}, but exactly one of them says how runs start; "
                "give one, and leave the other out or set it to null"
            )
        return self


def read_sweep(path: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep YAML, apply `key=value` overrides, and check what it says of the sweep itself.

    Raises:
        ConfigError: a setting of the sweep is unknown, mistyped, out of range or set in the wrong place.
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
    return config


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
