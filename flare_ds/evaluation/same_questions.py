"""Asking a trained run what it was trained to answer: its prompt, its label words, its tokenizer; of rows new to it."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from flare_ds.config import Config
from flare_ds.data.cache.key import SPLIT, asked_fields, chat_fields, differences
from flare_ds.exceptions import ConfigError
from flare_ds.runs import RunDirectory
from flare_ds.runs.directory import CACHE
from flare_ds.tasks.base import Task
from flare_ds.tokenizing.fingerprint import tokenizer_fingerprint

_COMPARED = ("prompt_template", "labels", "special_tokens", "answers")


def check_same_split(config: Config, task: Task) -> None:
    """Refuse rows that another language than the run's dealt to test: it may have been trained on them.

    A run of an earlier version, which let other languages decide, does not say which did.

    Raises:
        ConfigError: they are, or may be.
    """
    recorded = RunDirectory(config.run_dir).record(CACHE).get("fields", {})
    asked = asked_fields(config, task).get(SPLIT)
    if recorded and recorded.get(SPLIT) != asked:
        raise ConfigError(
            f"the rows of task {task.name} are split by the text in {asked or config.task.source_language}, and "
            f"{config.run_dir} was trained on rows that were split otherwise: its test rows may be among them",
            fix="train a new run, or give labelled rows of your own (evaluate RUN --file)",
        )


def check_same_questions(config: Config, task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse to ask a run otherwise than it was trained; one that never began has nothing to differ from.

    Raises:
        ConfigError: the prompt, the label words, the tokenizer or its chat template are not those of the run.
    """
    recorded = RunDirectory(config.run_dir).record(CACHE).get("fields", {})
    asked = {name: value for name, value in asked_fields(config, task).items() if name in _COMPARED}
    now: dict[str, Any] = asked | chat_fields(config, tokenizer)
    now["tokenizer_sha256"] = tokenizer_fingerprint(tokenizer)
    known = {name: value for name, value in recorded.items() if name in now}
    if known and (changed := differences(known, {name: now[name] for name in known})):
        raise ConfigError(
            f"{config.run_dir} was trained to answer other questions: {'; '.join(changed)}",
            fix="restore the task file and the tokenizer it was trained with, or train a new run",
        )
