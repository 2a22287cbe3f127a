"""Reading a config: a YAML file and `key=value` overrides, into a checked `Config`.

An unknown key, a wrong type or an impossible combination raises `ConfigError` before anything is loaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from flare_ds.config import Config
from flare_ds.exceptions import ConfigError
from flare_ds.places import relocated
from flare_ds.registry import suggestion
from flare_ds.tasks.languages import nllb_tag
from flare_ds.tasks.load import task_of
from flare_ds.yaml_file import read_yaml


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides, check everything.

    Args:
        path: a YAML file; or a run directory, which is then the `run_dir`, wherever its saved `config.yaml` says it
            began, and whose paths are found as `flare_ds.places` says.
        overrides: e.g. `["train.steps=10", "task.target_language=pl"]`; values are read as YAML.

    Raises:
        ConfigError: the file is missing or not YAML, or a setting is unknown, mistyped or out of range.
    """
    file = Path(path)
    if file.is_dir():
        settings = relocated(read_yaml(file / "config.yaml"), file)
        file = file / "config.yaml"
    else:
        settings = read_yaml(file)
    for override in overrides:
        apply_override(settings, override)
    return parse_config(settings, origin=str(file))


def parse_config(settings: dict[str, Any], *, origin: str) -> Config:
    """Check a nested mapping of settings and turn it into a `Config`.

    Raises:
        ConfigError: naming the first offending setting, its value, and the fix.
        DataError: the task or NLLB's tag of its target language is not known (where an MT encoder is used).
    """
    try:
        return _with_mt_language(Config.model_validate(settings))
    except ValidationError as error:
        raise explain(error, Config, origin) from None


def _with_mt_language(config: Config) -> Config:
    """The MT encoder's language, where it is not given: NLLB's tag of the target language, so that a sweep has many."""
    if config.source.mt_encoder is None or config.source.mt_language is not None:
        return config
    tag = nllb_tag(task_of(config.task), config.task.target_language)
    return config.model_copy(update={"source": config.source.model_copy(update={"mt_language": tag})})


def apply_override(settings: dict[str, Any], override: str) -> None:
    """Set one `key=value` in a nested mapping.

    Raises:
        ConfigError: it is not of that form, or the key runs through a value.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"cannot read the override {override!r}", fix="write it as key=value, e.g. train.steps=10")
    *sections, leaf = key.split(".")
    for section in sections:
        nested = settings.setdefault(section, {})
        if not isinstance(nested, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section", fix="check the key")
        settings = nested
    settings[leaf] = yaml.safe_load(text)


def explain(error: ValidationError, model: type[BaseModel], origin: str) -> ConfigError:
    """The first problem of a validation, said in our words.

    Args:
        error: what pydantic found.
        model: the model that was to be built, whose keys are suggested.
        origin: the file the settings come from.
    """
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if not str(part).startswith(("list[", "literal["))]
    name = ".".join(path)
    if first["type"] == "extra_forbidden":
        return ConfigError(
            f"unknown setting {name!r} in {origin}", fix=suggestion(path[-1], _known_keys(model, path[:-1]))
        )
    if first["type"] == "missing":
        return ConfigError(f"setting {name!r} is missing in {origin}", fix=f"add it, or pass {name}=VALUE")
    if first["type"] == "value_error":
        problem, _, fix = str(first["ctx"]["error"]).rpartition("; ")
        return ConfigError(f"{problem} (in {origin})", fix=fix)
    return ConfigError(f"setting {name}={first['input']!r} in {origin}: {first['msg']}", fix=f"change {name}")


def _known_keys(model: Any, sections: Sequence[str]) -> list[str]:
    for section in sections:
        model = model.model_fields[section].annotation
    return list(model.model_fields)
