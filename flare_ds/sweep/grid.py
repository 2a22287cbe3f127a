"""One YAML describes a sweep: what all runs share, the grid, and how a distributed command is started.

    base:      the settings of a run, without those the sweep sets itself
    out:       directory of the sweep
    ranks:     on how many ranks of this host each run works, or `all` for all GPUs
    launch:    instead, how ranks are started, e.g. "torchrun --nproc-per-node 2 -m"; " flare_ds train CONFIG" is
               appended, and {free_port} becomes a port that is free here
    stage1:    settings that differ for the task adapter (`{}`: none do); null: the base is tuned already
    grid:      languages, methods, seeds, and any further setting with its values
    grids:     further grids, whose cells come after those of the first
    methods:   settings that differ by method
    variants:  NAME: settings that differ, `method` among them; named in grid.methods
    tasks:     NAME: settings that differ by task; each task gets a stage 1 of its own
    models:    NAME: settings that differ by base; likewise
    score:     test, or validation: what training measured is all, and no test row is ever scored
    together:  how many cells train in one job over one base, or `auto`: as many as fit (docs/together.md)
    retries:   how often a command that failed is tried again

Settings that differ are written in sections or with dots. What the YAML says of the sweep itself is checked here;
`flare_ds.sweep.plan` makes runs of it.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, field_validator, model_validator

from flare_ds.config import Config
from flare_ds.config.section import Section, TypedPath
from flare_ds.exceptions import ConfigError, together
from flare_ds.failures import say
from flare_ds.methods import METHODS
from flare_ds.nested_settings import nested
from flare_ds.overrides import apply_overrides, is_text
from flare_ds.paths import expanded
from flare_ds.registry import suggestion
from flare_ds.sweep.axes import NAME, Grid
from flare_ds.wrong_values import explain
from flare_ds.yaml_file import read_yaml

_SECTIONS = ("model", "task", "translate", "source", "adapter", "mixup", "train", "evaluate", "generate", "tracking")
_LAUNCHERS = ("deepspeed", "torchrun", "accelerate", "python")
_SET_BY_SWEEP = ("method", "run_dir", "task.target_language", "train.seed")
_FREE = {"stage1": {"train.seed"}, "variants": {"method"}}
"""Those of them that a part of the sweep may say itself."""
_NAMED = ("methods", "variants", "tasks", "models")
"""Parts that hold settings by name."""
Settings = dict[str, Any]


class SweepConfig(Section):
    """The sweep YAML as it is written."""

    base: Settings = Field(description="settings of every run")
    out: TypedPath = Field(description="directory of the sweep")
    ranks: PositiveInt | Literal["all"] | None = Field(None, description="ranks of this host per run (all: one a GPU)")
    launch: str | None = Field(None, min_length=1, description="command that starts several ranks, instead of `ranks`")
    stage1: Settings | None = Field(None, description="settings that differ for the task adapter")
    grid: Grid
    grids: list[Grid] = Field(default_factory=list, description="further grids, after the first")
    methods: dict[str, Settings] = Field(default_factory=dict, description="settings that differ by method")
    variants: dict[str, Settings] = Field(default_factory=dict, description="methods of your own, by name")
    tasks: dict[str, Settings] = Field(default_factory=dict, description="settings that differ by task, by name")
    models: dict[str, Settings] = Field(default_factory=dict, description="settings that differ by base, by name")
    score: Literal["test", "validation"] = Field("test", description="rows that finished cells are judged by")
    together: PositiveInt | Literal["auto"] = Field(1, description="cells that train in one job, or auto")
    retries: NonNegativeInt = Field(0, description="how often a command that failed is tried again")

    @field_validator("variants", "tasks", "models")
    @classmethod
    def _names_of_directories(cls, named: dict[str, Settings]) -> dict[str, Settings]:
        for name in named:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r:.200} is used as a directory name; use only letters, digits and . _ - + @")
        return named

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

    @property
    def all_grids(self) -> tuple[Grid, ...]:
        """The first and the further ones."""
        return (self.grid, *self.grids)

    def method_of(self, name: str) -> str:
        """The method that a name in a grid stands for."""
        return self.variants.get(name, {}).get("method", name)


def read_sweep(path: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep YAML, apply `key=value` overrides, and check what it says of the sweep itself.

    Raises:
        ConfigError: a setting of the sweep is unknown, mistyped, out of range, set twice or in the wrong place.
    """
    path = Path(expanded(str(path)))
    settings = _in_sections(read_yaml(path))  # so that an override meets what is written with dots
    apply_overrides(settings, overrides, is_text_in_sweep)
    settings = _in_sections(settings)  # a value may be a section, with dots of its own
    _check_sections(settings, str(path))
    try:
        config = SweepConfig.model_validate(settings)
    except ValidationError as error:
        raise explain(error, SweepConfig, str(path)) from None
    _check_places(config, str(path))
    return config


def _in_sections(settings: Settings) -> Settings:
    """A sweep as it is written, with sections in place of dots where it holds the settings of runs."""
    return {part: _part_in_sections(part, value) for part, value in settings.items()}


def _part_in_sections(place: str, value: Any) -> Any:
    if place in _NAMED and isinstance(value, Mapping):  # names have dots of their own
        return {name: _part_in_sections(f"{place}.{name}", inner) for name, inner in value.items()}
    if isinstance(value, Mapping):
        return nested(value, f"{place}.")
    return [_part_in_sections(place, one) for one in value] if place == "grids" and isinstance(value, list) else value


def launch_words(launch: str) -> tuple[str, ...]:
    """The first words of a distributed command; `~` and `$VAR` filled in, as a shell would.

    Raises:
        ConfigError: a word names a variable that is not set.
        ValueError: it has a quote that is not closed.
    """
    return tuple(expanded(word) if word.startswith(("~", "$")) else word for word in shlex.split(launch))


def is_text_in_sweep(path: Sequence[str]) -> bool:
    """Whether a setting of a sweep, its key given as its parts, is a text."""
    inner = 2 if path[0] in _NAMED else int(path[0] in ("base", "stage1"))
    return is_text(Config if inner else SweepConfig, path[inner:])


def _check_sections(settings: Mapping[str, Any], origin: str) -> None:
    """Refuse the settings of a run where those of the sweep belong."""
    if "run_dir" in settings and "grid" not in settings:
        raise ConfigError(f"{origin} is a run, not a sweep", fix=shlex.join(["flare-ds", "train", origin]))
    wrong = []
    for name in sorted(str(name) for name in Config.model_fields.keys() & settings.keys()):
        inner = settings[name]
        key = f"{name}.{next(iter(inner))}" if isinstance(inner, dict) and inner else name
        fix = f"it follows from out and grid: remove {key}" if key in _SET_BY_SWEEP else f"write it as base.{key}"
        wrong.append(ConfigError(f"{key} is a setting of a run, not of the sweep {origin}", fix=fix))
    if wrong:
        raise together(wrong, origin)


def _check_places(config: SweepConfig, origin: str) -> None:
    """Refuse unknown names, and settings that the sweep would silently overwrite; tell those it will not read."""
    wrong = [*_unknown(config, origin), *_misplaced("base", config.base, origin)]
    wrong += _misplaced("stage1", config.stage1 or {}, origin)
    for part in _NAMED:
        for name, settings in getattr(config, part).items():
            wrong += _misplaced(f"{part}.{name}", settings, origin)
    for grid in config.all_grids:
        wrong += _misplaced_axes(grid, origin)
    if wrong:
        raise together(wrong, origin)
    used = {config.method_of(name) for grid in config.all_grids for name in grid.methods}
    for method in config.methods.keys() - used:
        say(f"methods.{method} in {origin} is not used: {method} is not in grid.methods")


def _unknown(config: SweepConfig, origin: str) -> Iterator[ConfigError]:
    """Names that stand for nothing."""
    named = {name for grid in config.all_grids for name in grid.methods} - config.variants.keys()
    for name in sorted({*named, *config.methods} - set(METHODS)):
        problem = f"unknown method {name!r:.200} in {origin} (grid.methods, methods)"
        yield ConfigError(problem, fix=suggestion(name, [*METHODS, *config.variants]))
    for name, settings in config.variants.items():
        method = str(settings.get("method"))
        if "method" not in settings:
            yield ConfigError(f"variants.{name} in {origin} names no method", fix="say method: flare in it, or another")
        elif method not in METHODS:
            problem = f"unknown method {method!r:.200} in {origin} (variants.{name})"
            yield ConfigError(problem, fix=suggestion(method, METHODS))
        elif name in METHODS and name != method:
            problem = f"variants.{name} in {origin} has the name of a method, but is method={method}"
            yield ConfigError(problem, fix=f"give it another name, in grid.methods too, or say method: {name}")
    for part in ("tasks", "models"):
        known: dict[str, Settings] = getattr(config, part)
        for name in sorted({name for grid in config.all_grids for name in getattr(grid, part) or ()} - known.keys()):
            problem = f"grid.{part} in {origin} names {name!r:.200}, which is not in {part}"
            yield ConfigError(problem, fix=suggestion(name, known) if known else f"add it to {part}")


def _misplaced_axes(grid: Grid, origin: str) -> Iterator[ConfigError]:
    """Refuse axes along which cells would need another stage 1, or that are axes already."""
    own = {"task.target_language": "languages", "train.seed": "seeds"}
    for name in dict.fromkeys(name for axis in grid.choices() for choice in axis for name in choice):
        better = "models" if name.startswith("model.") else "tasks" if name == "task.source_language" else own.get(name)
        if better or name in _SET_BY_SWEEP:
            yield ConfigError(f"grid.{name} in {origin} is no axis", fix=f"use {better or 'methods'} instead")


def _misplaced(place: str, settings: Settings, origin: str) -> Iterator[ConfigError]:
    for section in _SECTIONS:
        if not isinstance(settings.get(section, {}), dict):
            problem = f"{place}.{section}={settings[section]!r:.200} in {origin} is not a section"
            yield ConfigError(problem, fix=f"write the settings of {section} below it, indented")
    free = _FREE.get(place.partition(".")[0], set())
    for name in (name for name in _SET_BY_SWEEP if name not in free):
        section, _, leaf = name.rpartition(".")
        holder = settings.get(section, {}) if section else settings
        if isinstance(holder, dict) and leaf in holder:
            yield ConfigError(
                f"{place}.{name}={holder[leaf]!r:.200} in {origin}, but the sweep sets {name} for each run",
                fix=f"remove it; {name} follows from out and grid",
            )
