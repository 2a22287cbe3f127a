"""Overrides: `key=value` on a command line, laid over the settings of a YAML.

key     the setting's name, with a dot between section and setting: train.steps
value   where the setting is a text (a path, a name, a language): what is written, whatever characters it has;
        nothing or null: none; in '...' or "...": what stands between the quotes, as in YAML
        otherwise (a number, true or false, a list, a section): read as in a YAML file, whole
"""

from collections.abc import Callable, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from flare_ds.exceptions import Asking, ConfigError
from flare_ds.yaml_file import parse_value

IsText = Callable[[Sequence[str]], bool]
"""Whether the setting of a key, given as its parts, is a text."""


def apply_overrides(settings: dict[str, Any], overrides: Sequence[str], is_text: IsText) -> None:
    """Set each `key=value` in the nested settings of a YAML; the later wins.

    Raises:
        ConfigError: they are no list of texts; one is not of that form, its key runs through a value, or its value
            cannot be read.
    """
    if isinstance(overrides, str) or not all(isinstance(override, str) for override in overrides):
        problem = f"overrides={overrides!r} is not a list of texts"
        raise ConfigError(problem, fix='give a list, e.g. ["train.steps=100"]')
    asked = Asking()
    for override in overrides:
        asked.of(_apply, settings, override, is_text)
    asked.tell("the overrides")


def _apply(settings: dict[str, Any], override: str, is_text: IsText) -> None:
    key, equals, value = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"cannot read the override {override!r}", fix="write it as key=value, e.g. train.steps=10")
    *sections, leaf = path
    for section in sections:
        if settings.get(section) is None:  # absent, or a section without a line below it
            settings[section] = {}
        settings = settings[section]
        if not isinstance(settings, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section", fix="check the key")
    settings[leaf] = _value(value.strip(), override, text=is_text(path))


def _value(value: str, override: str, *, text: bool) -> Any:
    if text and not value.startswith(("'", '"')):
        return None if value in ("", "null") else value
    try:
        return parse_value(value, origin=f"the override {override!r}")
    except ConfigError as error:
        # That of the file would speak of lines to mend.
        fix = (
            "write the value as in a YAML, and all of it in single quotes for the shell: 'grid.languages=[pl, \"no\"]'"
        )
        raise ConfigError(error.problem, fix=fix) from None


def is_text(model: type[BaseModel], path: Sequence[str]) -> bool:
    """Whether a setting is a text, or a text or none; False also where there is no such setting."""
    return _holds_text(_annotation(model, path))


def keys_of(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The settings of a section."""
    return list(getattr(_annotation(model, path), "model_fields", ()))


def _annotation(model: Any, path: Sequence[str]) -> Any:
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        model = field and field.annotation
    return model


def _holds_text(annotation: Any) -> bool:
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return any(map(_holds_text, get_args(annotation)))
    return annotation is str
