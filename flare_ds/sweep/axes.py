"""A grid: its axes, and the combinations of their values.

languages, methods, seeds   a method may be a variant that the sweep names
tasks, models               which of those that the sweep names; all, where nothing is said
adapter.r: [8, 16]          a setting of a run, and its values
rank:                       any name: settings that change together
  - {adapter.r: 8, adapter.alpha: 16}
  - {adapter.r: 16, adapter.alpha: 32}
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from flare_ds.config import Config
from flare_ds.config.section import Section
from flare_ds.nested_settings import flat, nested
from flare_ds.overrides import keys_of

NAME = re.compile(r"\w[\w.@+-]*")
"""What may be part of a path as it is."""


@dataclass(frozen=True)
class Cell:
    """One combination.

    Attributes:
        model: the name of a model, if the sweep names any.
        task: the name of a task, if the sweep names any.
        language: the target language.
        method: a method, or the name of a variant.
        choices: the settings that further axes chose, by dotted name.
        seed: of the training.
    """

    model: str | None
    task: str | None
    language: str
    method: str
    choices: Mapping[str, Any]
    seed: int


class Grid(Section):
    """A cell for each combination; a method that trains nothing gets one cell a language, under the first seed."""

    languages: list[str] = Field(min_length=1, description="target languages")
    methods: list[str] = Field(min_length=1, description="methods or variants, in the order they run")
    seeds: list[NonNegativeInt] = Field(min_length=1, description="training seeds")
    tasks: list[str] | None = Field(None, min_length=1, description="names among the sweep's tasks (null: all)")
    models: list[str] | None = Field(None, min_length=1, description="names among the sweep's models (null: all)")
    axes: dict[str, list[Any]] = Field(default_factory=dict, description="further settings and their values")

    @model_validator(mode="before")
    @classmethod
    def _axes_apart(cls, written: Any) -> Any:
        """Further axes are written beside languages and methods: what has a dot, and lists of settings."""
        if not isinstance(written, Mapping):
            return written
        own = cls.model_fields.keys() - {"axes"}
        other = flat({key: value for key, value in written.items() if key not in own})
        axes = {key: other.pop(key) for key in list(other) if "." in key or _goes_together(other[key])}
        for key, values in axes.items():
            if not isinstance(values, list):
                raise ValueError(f"{key}={values!r:.200} is no list of values; write {key}: [{values!r:.200}]")
        for key, values in other.items():
            if isinstance(values, list) and not get_close_matches(key, own):  # those are typed wrong, and told so
                problem = f"{key}={values!r:.200} is not an axis: one without a dot in its name is a list of settings"
                raise ValueError(f"{problem}; write {_as_axis(key)}")
        return {key: written[key] for key in own & written.keys()} | other | {"axes": axes}

    @field_validator("languages", "methods", "seeds", "tasks", "models")
    @classmethod
    def _no_repeats(cls, values: list[Any] | None) -> list[Any] | None:
        if values is not None and len(set(values)) < len(values):
            raise ValueError(f"{values} has the same value twice; keep each value once")
        return values

    @field_validator("languages")
    @classmethod
    def _names_of_directories(cls, languages: list[str]) -> list[str]:
        for language in languages:
            if not re.fullmatch(r"\w[\w.@-]*", language):
                raise ValueError(f"{language!r:.200} is not a language code; write codes such as pl or pt-BR")
        return languages

    @field_validator("axes")
    @classmethod
    def _have_values(cls, axes: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for name, values in axes.items():
            if not values or any(value in values[:place] for place, value in enumerate(values)):
                raise ValueError(f"{name}={values!r:.200} is empty or repeats a value; give a list of different values")
        set_by: dict[str, str] = {}
        for name, values in axes.items():
            for setting in dict.fromkeys(setting for value in _choices(name, values) for setting in value):
                if (other := set_by.setdefault(setting, name)) != name:
                    raise ValueError(f"{other} and {name} both set {setting}; let one axis set it")
        return axes

    def cells(self, tasks: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[Cell]:
        """Every combination, in the order they run: model by model, task by task, language by language.

        Args:
            tasks: those that the sweep names.
            models: those that the sweep names.
        """
        places = itertools.product(
            self.models or tuple(models) or (None,), self.tasks or tuple(tasks) or (None,), self.languages, self.methods
        )
        choices = [dict(itertools.chain(*map(dict.items, chosen))) for chosen in itertools.product(*self.choices())]
        for (model, task, language, method), chosen, seed in itertools.product(places, choices, self.seeds):
            yield Cell(model, task, language, method, chosen, seed)

    def choices(self) -> Iterator[list[dict[str, Any]]]:
        """The settings of each value of each axis, by dotted name."""
        for name, values in self.axes.items():
            yield _choices(name, values)


def suffix(choices: Mapping[str, Any]) -> str:
    """What a directory says of some settings: `-r16-fusion-add`; a name that two sections have is said whole."""
    leaves = [name.rpartition(".")[2] for name in choices]
    said = (name if leaves.count(leaf) > 1 else leaf for name, leaf in zip(choices, leaves, strict=True))
    return "".join(f"-{name}{_shown(value)}" for name, value in zip(said, choices.values(), strict=True))


def _shown(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}" if isinstance(value, float) else str(value)
    parts = value if isinstance(value, list) else [value]
    shown = "+".join("null" if part is None else str(part) for part in parts)
    return "-" + re.sub(r"[^\w.+-]", "_", shown.rstrip("/").rpartition("/")[2])


def _choices(name: str, values: list[Any]) -> list[dict[str, Any]]:
    together = [nested(value, f"grid.{name}.") if isinstance(value, Mapping) else {name: value} for value in values]
    return [flat(settings) for settings in together]


def _as_axis(key: str) -> str:
    """How what was probably meant is written."""
    sections = {name: keys_of(Config, [name]) for name in Config.model_fields}
    if named := [f"{section}.{key}: [...]" for section, keys in sections.items() if key in keys]:
        return " or ".join(named)
    setting = key if key in sections else "SECTION.SETTING"
    return f"{key}: [{{{setting}: ...}}, {{{setting}: ...}}]"


def _goes_together(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) and one for one in value)
