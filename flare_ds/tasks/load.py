"""Finding the task a config names, built in or in a file of the user's own, and checking the config's languages.

    task.path: my_task.yaml    the arguments of a TableTask
    task.path: my_task.py      a module that makes a Task of that name, or defines a class of one

Tasks of both kinds can be sent to worker processes.
"""

import copyreg
import hashlib
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flare_ds.config import TaskConfig
from flare_ds.exceptions import ConfigError, DataError, FlareError, together
from flare_ds.registry import suggestion
from flare_ds.tasks.base import TASKS, Task
from flare_ds.tasks.check import check_task
from flare_ds.tasks.languages import nllb_tag, own_code
from flare_ds.tasks.of_run import task_file
from flare_ds.tasks.table import TableTask
from flare_ds.wrong_values import refused, worded
from flare_ds.yaml_file import read_yaml

_KEYS: dict[str, str] = {
    key: schema["description"] for key, schema in TypeAdapter(TableTask).json_schema()["properties"].items()
}
"""What each key of a YAML declaration says."""
_NAME = re.compile(r"[\w-][\w.-]*")
"""What a task of the user's own may be called: the directories of its caches begin so."""


def task_of(config: TaskConfig) -> Task:
    """The task that a config names.

    Raises:
        ConfigError: no task has that name, or `task.path` is not a file that defines it.
    """
    if config.path is None:
        try:
            return TASKS.get(config.name)
        except ConfigError as error:
            raise ConfigError(f"{error.problem:.200} (task.name)", fix=error.fix) from None
    path = task_file(config.path)
    if path.suffix not in (".py", ".yaml", ".yml"):
        raise ConfigError(f"task.path={config.path!r} is neither .yaml nor .py", fix="docs/tasks.md shows both")
    if not path.exists():
        raise ConfigError(f"task.path={config.path!r} is not there", fix="check the path")
    is_python = path.suffix == ".py"
    task = _task_in_module(path.absolute(), config.name) if is_python else _task_in_yaml(path)
    return check_task(_checked_name(task, config, path))


def check_languages(task: Task, config: TaskConfig) -> None:
    """Refuse languages that the task cannot give, before anything is read.

    Raises:
        DataError: a language the task lacks or has no prompt or label words for, sides that do not exist, or a target
            nothing can translate into.
    """
    for language in config.languages:
        task.prompt_in(language, dict.fromkeys(task.fields, ""))
        task.label_words(language)
    if config.sides == "own":
        _check_own(task, config)
        return
    task.check_language(config.source_language)
    if config.extra_source_languages:
        problem = f"task.extra_source_languages={list(config.extra_source_languages)} with task.sides=translated"
        raise DataError(problem, fix="remove them (one source is translated), or set task.sides=own")
    if config.is_translated:
        _check_direction(task, config)
        if own := own_code(task, config.target_language):
            problem = f"task.target_language={config.target_language!r} is what task {task.name} calls {own!r}"
            fix = f"set task.target_language={own}, or its own test rows would not be read"
            raise DataError(problem, fix=fix)


def _check_direction(task: Task, config: TaskConfig) -> None:
    """Refuse languages without a tag, and two that are one to a translator: it would copy the text at best."""
    source, target = config.source_language, config.target_language
    if (tag := nllb_tag(task, source)) == nllb_tag(task, target):
        problem = f"task.source_language={source} and task.target_language={target} are both {tag} to the translator"
        raise DataError(problem, fix="change one of the two, or set task.sides=own")


def _check_own(task: Task, config: TaskConfig) -> None:
    languages = dict.fromkeys(config.languages)
    translated = "set task.sides=translated to have the other side machine-translated"
    for language in languages:
        if language not in task.languages:
            problem = f"task {task.name} has no language {language!r}"
            raise DataError(problem, fix=f"{suggestion(language, task.languages)}, or {translated}")
    if len(languages) > 1 and not task.parallel:
        problem = f"the rows of task {task.name} are not the same in {', '.join(languages)}"
        raise DataError(f"{problem}, so they make no pairs (task.sides=own)", fix=translated)


def _checked_name(task: Task, config: TaskConfig, path: Path) -> Task:
    if task.name != config.name:
        problem = f"task.name={config.name!r}, but {path} defines task {task.name!r}"
        raise ConfigError(problem, fix=f"set task.name={task.name}")
    of_a_run = path != Path(str(config.path))  # one that an earlier version made under any name is still scored
    if not of_a_run and not _NAME.fullmatch(task.name):
        fix = f"use letters, digits, _, - and . alone, and no . in front, there and in {path}"
        raise ConfigError(f"task.name={task.name!r} cannot begin the name of a directory", fix=fix)
    return task


def _task_in_yaml(path: Path) -> TableTask:
    settings = read_yaml(path, like="the one in docs/tasks.md")
    unknown = [key for key in settings if key not in _KEYS]
    if unknown:
        told = [ConfigError(f"unknown key {key!r} in {path}", fix=suggestion(str(key), _KEYS)) for key in unknown]
        raise together(told, str(path))
    try:
        return TypeAdapter(TableTask).validate_python(settings)
    except ValidationError as error:
        raise _explain(error, path) from None


def _explain(error: ValidationError, path: Path) -> FlareError:
    """All problems of a declaration, of each key the first, said in our words."""
    found = {place[:1]: _problem(place, details, path) for place, details in reversed(refused(error).items())}
    return together([*reversed(found.values())], str(path))


def _problem(place: tuple[str, ...], refusals: Sequence[Any], path: Path) -> ConfigError:
    kind = refusals[0]["type"]
    if kind == "value_error":
        problem, _, fix = str(refusals[0]["ctx"]["error"]).rpartition("; ")
        return ConfigError(f"{problem} (in {path})", fix=fix)
    key = place[0]
    if kind == "missing":
        return ConfigError(f"key {key!r} is missing in {path}", fix=f"add it: {_KEYS[key]}")
    problem, fix = worded(".".join(place), refusals, origin=str(path))
    return ConfigError(f"key {problem}", fix=f"{fix} ({_KEYS[key]})")


def _task_in_module(path: Path, name: str) -> Task:
    module = _import(path)
    values = [value for key, value in vars(module).items() if not key.startswith("__")]
    made = [value for value in values if isinstance(value, Task)]
    kinds = [
        kind for kind in values if inspect.isclass(kind) and issubclass(kind, Task) and not inspect.isabstract(kind)
    ]
    tasks = [task for task in made if task.name == name]
    tasks = tasks or [kind() for kind in kinds if getattr(kind, "name", None) == name]
    if len(tasks) != 1:
        names = sorted({value.name for value in (*made, *kinds) if hasattr(value, "name")})
        problem = f"{path} defines {len(tasks)} tasks named {name!r} (task.name), not one (it has: {', '.join(names)})"
        raise ConfigError(problem, fix="set task.name to the task's name, and make one task of that name in the file")
    kind = type(tasks[0])
    if kind.__module__ == module.__name__:
        # A worker process cannot import the module by its name: it reads the file again.
        copyreg.pickle(kind, lambda _: (_task_in_module, (path, name)))
    return tasks[0]


def _import(path: Path) -> ModuleType:
    """Run a Python file as a module of a private name, once for each content, so that a changed file is never stale."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read task.path={str(path)!r}: {error.strerror}", fix="check the path") from error
    name = f"flare_ds_task_{hashlib.sha256(bytes(path) + source).hexdigest()[:16]}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module  # dataclasses look themselves up there
        try:
            exec(compile(source, str(path), "exec"), vars(module))
        except Exception as error:
            del sys.modules[name]
            problem = f"importing task.path={str(path)!r} failed: {type(error).__name__}: {error}"
            raise ConfigError(problem, fix=f"for the traceback, run: python {path}") from error
    return sys.modules[name]
