"""A config to begin with: the settings one decides on, each with what it says; all others keep their defaults."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flare_ds.config import AdapterConfig, Config, ModelConfig, TaskConfig
from flare_ds.evaluation.answerable import check_answers
from flare_ds.exceptions import ConfigError
from flare_ds.methods import METHODS, Method
from flare_ds.model_files.saved_config import saved_config
from flare_ds.models.checked import CHECKED, Checked
from flare_ds.settings import parse_config
from flare_ds.tasks.base import TASKS, Task
from flare_ds.tasks.load import check_languages, task_of
from flare_ds.yaml_file import dump_yaml, read_yaml

_MT_ENCODER = "facebook/nllb-200-distilled-600M"
_COMMENT_AT = 44
"""Column."""


def new_config(*, task: str, base: str, method: str, languages: Sequence[str] = (), data_dir: str | None = None) -> str:
    """The text of a config.

    Args:
        task: registered name of a task, or a YAML file that declares one.
        base: directory or hub name of the base.
        method: one of `flare_ds.methods`.
        languages: the source language, and the target language; none: the task's first two, English before others.
        data_dir: directory with the task's files; None: the hub.

    Raises:
        ConfigError: there is no such task or method, it has to be said which languages are meant, or the method cannot
            work with them.
        DataError: the task cannot give one of the languages, and nothing can translate into it.
    """
    found, named = _named(task)
    recipe = METHODS.get(method)
    source, target = _languages(found, languages)
    settings: dict[str, Any] = {
        "method": method,
        "run_dir": f"runs/{target}-{method}",
        "model": {"base": base, **_attention(base)},
        "task": {**named, "data_dir": data_dir, **_task(found, source, target)},
        **({"source": {"mt_encoder": _MT_ENCODER}} if recipe.states == "mt_encoder" else {}),
        **_fused(base, recipe),
        "train": _train(found),
    }
    config = parse_config(settings, origin="the given options")
    check_languages(found, config.task)
    check_answers(config, found)
    return "\n".join([_HEAD, *_lines(settings, Config), ""])


_HEAD = """\
# Settings of one run. Check them with `flare-ds check FILE`, then train with `flare-ds train FILE`.
# All others keep their defaults; `flare-ds config --schema` lists them."""


def _named(task: str) -> tuple[Task, dict[str, str]]:
    """The task, and how a config names it."""
    if not task.endswith((".yaml", ".yml")):
        return TASKS.get(task), {"name": task}
    name = str(read_yaml(Path(task)).get("name"))
    return task_of(TaskConfig(name=name, path=task, target_language="en")), {"name": name, "path": task}


def _languages(task: Task, named: Sequence[str]) -> tuple[str, str]:
    if len(named) == 2:
        return named[0], named[1]
    if not named and len(task.languages) == 1:
        problem = f"task {task.name} has only {task.languages[0]}, so the target side has to be machine-translated"
        raise ConfigError(problem, fix=f"name the target language: --languages {task.languages[0]},TARGET")
    if named:
        problem = f"--languages names {len(named)} languages, not a source and a target"
        raise ConfigError(problem, fix=f"e.g. --languages en,pl (task {task.name} has: {', '.join(task.languages)})")
    source = "en" if "en" in task.languages else task.languages[0]
    return source, next(language for language in task.languages if language != source)


def _task(task: Task, source: str, target: str) -> dict[str, Any]:
    """Its languages, translated where the task does not say the same in both."""
    own = source == target or (task.parallel and {source, target} <= {*task.languages})
    languages = {"source_language": source, "target_language": target} | ({} if own else {"sides": "translated"})
    return languages | ({"max_prompt_tokens": 384} if task.free_answers else {})


def _train(task: Task) -> dict[str, Any]:
    settings = {"steps": 300, "batch_size": 16, "learning_rate": 5e-4, "validate_every": 50, "seed": 1}
    return settings | ({"objective": "vocabulary"} if task.free_answers else {})


def _known(base: str) -> Checked:
    """What is known of the base's kind, or of most."""
    kind = saved_config(base).get("model_type")
    return next((one for one in CHECKED if one.kind == kind), CHECKED[0])


def _attention(base: str) -> dict[str, str]:
    """`model.attention`, where a base of this kind does not have the default one."""
    default = ModelConfig.model_fields["attention"].default
    return {} if default in (has := _known(base).attentions) else {"attention": has[0]}


def _fused(base: str, method: Method) -> dict[str, Any]:
    """`adapter.fused_modules`, where the default ones are not there, or not as wide as an MT encoder's states."""
    known = _known(base)
    wanted = list(known.reading if method.states == "mt_encoder" else known.fused)
    fits = method.fuses != "bottleneck" or wanted == AdapterConfig.model_fields["fused_modules"].default
    return {} if fits else {"adapter": {"fused_modules": wanted}}


def _lines(settings: Mapping[str, Any], model: Any, indent: str = "") -> list[str]:
    """The settings of a section, each with what its field says."""
    lines: list[str] = []
    for name, value in settings.items():
        field = model.model_fields[name]
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *_lines(value, field.annotation, indent + "  ")]
        else:
            said = dump_yaml({name: value}).strip()
            if "\n" in said:
                said = f"{name}: {json.dumps(value, ensure_ascii=False)}"
            lines.append(f"{indent + said:<{_COMMENT_AT}}  # {field.description}")
    return lines
