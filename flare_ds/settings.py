"""Reading a config: a YAML file and `key=value` overrides, into a checked `Config`.

Everything that is wrong is told at once, before anything is loaded: an unknown key, a wrong type, an impossible
combination. How an override is read is said in `flare_ds.overrides`.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from flare_ds.config import Config
from flare_ds.exceptions import ConfigError, DataError, FlareError, together
from flare_ds.overrides import apply_overrides, is_text, keys_of
from flare_ds.paths import expanded
from flare_ds.places import relocated
from flare_ds.registry import suggestion
from flare_ds.tasks.languages import codes_of, nllb_tag
from flare_ds.tasks.load import task_of
from flare_ds.tasks.of_run import use_named_task, use_task_of_run
from flare_ds.wrong_values import refused, worded
from flare_ds.yaml_file import read_yaml

_ELSEWHERE = {"modules_to_save": "train_head", "rank": "r", "lora_r": "r"}
"""Settings by the names that others give them, where the nearest of ours is another one."""


def load_config(path: str | Path, overrides: Sequence[str] = (), *, trust_task_code: bool = False) -> Config:
    """Read a YAML file, apply `key=value` overrides, check everything.

    Args:
        path: a YAML file; or a run directory, or the config.yaml in it: the directory is then the `run_dir`, wherever
            that file says it began, and its paths are found as `flare_ds.places` says.
        overrides: e.g. `["train.steps=10", "task.target_language=pl"]`, see `flare_ds.overrides`.
        trust_task_code: whether a task in Python that a run directory names may be run; one named otherwise may.

    Raises:
        ConfigError: the file is missing or not YAML, or a setting is unknown, mistyped or out of range.
    """
    file = Path(expanded(str(path)))
    if not file.exists():
        raise ConfigError(f"there is no config or run directory {str(file)!r}", fix="check the path")
    if file.name == "config.yaml" and (file.parent / "versions.json").exists():
        file = file.parent
    is_run = file.is_dir()
    settings = _saved(file) if is_run else read_yaml(file)
    if "grid" in settings and "run_dir" not in settings:
        raise ConfigError(
            f"{file} is a sweep, not a run", fix=shlex.join(["flare-ds", "sweep", str(file), "--dry-run"])
        )
    file = file / "config.yaml" if is_run else file
    saved, language = _task_path(settings), _target_language(settings)
    apply_overrides(settings, overrides, partial(is_text, Config))
    if (task_path := _task_path(settings)) is not None:
        named = any(override.startswith("task.path=") for override in overrides)
        if task_path == saved and not named and is_run:
            use_task_of_run(task_path, file.parent, trusted=trust_task_code)
        else:
            use_named_task(task_path)
    config = parse_config(settings, origin=str(file))
    tagged = any(override.startswith("source.mt_language=") for override in overrides)
    return config if tagged else _with_mt_language_again(config, language)


def config_of(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Check settings that Python code gives, nested as in a YAML file; the overrides and errors of `load_config`."""
    found = deepcopy(dict(settings))
    apply_overrides(found, overrides, partial(is_text, Config))
    if (task_path := _task_path(found)) is not None:
        use_named_task(task_path)
    return parse_config(found, origin="the settings given")


def saved_config(run_dir: Path) -> Config:
    """The saved settings of a run, to be compared or shown: code of its task, which nobody has trusted, is not run.

    Raises:
        ConfigError: they are missing or damaged.
    """
    return _checked(_saved(run_dir), str(run_dir / "config.yaml"))


def _saved(run_dir: Path) -> dict[str, Any]:
    return relocated(read_yaml(run_dir / "config.yaml"), run_dir)


def _task_path(settings: dict[str, Any]) -> str | None:
    """Where the task's file is, as the settings will say it: its name decides whether code in it may be run."""
    task = settings.get("task")
    if not isinstance(task, dict) or not isinstance(task.get("path"), str):
        return None
    with suppress(ConfigError):  # the settings are checked as a whole
        task["path"] = expanded(task["path"])
    return str(task["path"])


def parse_config(settings: dict[str, Any], *, origin: str, section: str = "") -> Config:
    """Check a nested mapping of settings and turn it into a `Config`.

    Args:
        settings: by section.
        origin: the file they come from.
        section: that of the file they are in, with a dot behind it; empty: they are all it holds.

    Raises:
        ConfigError: naming each offending setting, its value, and the fix.
        DataError: the task or NLLB's tag of its target language is not known (where an MT encoder is used).
    """
    return _with_mt_language(_checked(settings, origin, section))


def _checked(settings: dict[str, Any], origin: str, section: str = "") -> Config:
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise explain(error, Config, origin, section) from None


def _with_mt_language(config: Config) -> Config:
    """The MT encoder's language, where it is not given: NLLB's tag of the target language, so that a sweep has many."""
    if config.source.mt_encoder is None or config.source.mt_language is not None:
        return config
    tag = nllb_tag(task_of(config.task), config.task.target_language)
    return config.model_copy(update={"source": config.source.model_copy(update={"mt_language": tag})})


def _target_language(settings: Mapping[str, Any]) -> str | None:
    task = settings.get("task")
    language = task.get("target_language") if isinstance(task, dict) else None
    return language if isinstance(language, str) else None


def _with_mt_language_again(config: Config, before: str | None) -> Config:
    """The same for a language that an override has put in the place of another, whose tag the file holds."""
    tag = config.source.mt_language
    if tag is None or before in (None, config.task.target_language):
        return config
    with suppress(DataError):  # it had no tag
        of_before = nllb_tag(task_of(config.task), before)
        if tag in (of_before, *codes_of(of_before)):
            source = config.source.model_copy(update={"mt_language": None})
            return _with_mt_language(config.model_copy(update={"source": source}))
    return config


def explain(error: ValidationError, model: type[BaseModel], origin: str, section: str = "") -> FlareError:
    """All problems of a validation, said in our words.

    Args:
        error: what pydantic found.
        model: the model that was to be built, whose keys are suggested.
        origin: the file the settings come from.
        section: see `parse_config`.
    """
    problems = (_problems(name, details, model, origin, section) for name, details in refused(error).items())
    return together([problem for of_setting in problems for problem in of_setting], origin)


def _problems(
    path: tuple[str, ...], refusals: Sequence[Any], model: type[BaseModel], origin: str, section: str
) -> Iterator[ConfigError]:
    """What is wrong with one setting; where its types differ in what they refuse, in one sentence."""
    details, name = refusals[0], ".".join(path)
    value, kind = f"{details['input']!r:.200}", details["type"]
    if kind == "extra_forbidden":
        ours = _ELSEWHERE.get(path[-1], path[-1])
        yield ConfigError(f"unknown setting {name!r} in {origin}", fix=suggestion(ours, keys_of(model, path[:-1])))
    elif kind == "missing":
        yield ConfigError(f"setting {name!r} is missing in {origin}", fix=f"add it, or pass {section}{name}=VALUE")
    elif kind == "value_error":
        for told in details["ctx"]["error"].args:
            problem, _, fix = told.rpartition("; ")
            where = "" if problem.startswith(name) else f"setting {name}: "
            yield ConfigError(f"{where}{problem} (in {origin})", fix=fix)
    elif kind == "model_type":
        problem = f"setting {name}={value} in {origin} is no section"
        yield ConfigError(problem, fix=f"write the settings of {name} below it, indented, or leave it out")
    elif kind == "string_type" and isinstance(details["input"], bool | int | float):
        yield ConfigError(f"setting {name}={value} in {origin} is no text", fix=f'write {name}: "..." in quotes')
    else:
        problem, fix = worded(name, refusals, origin=origin)
        yield ConfigError(f"setting {problem}", fix=fix)
