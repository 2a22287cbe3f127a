"""Asking a trained run what it was trained to answer: its prompt, its label words, its tokenizer; of rows new to it.

What is compared is what the task says in the run's own languages, then and now. In another language it may have a
prompt and label words of its own: rows of that language are asked in them.
"""

from typing import Any

from transformers import PreTrainedTokenizerBase

from flare_ds.config import Config
from flare_ds.data.cache.key import PROBES, SPLIT, asked_fields, chat_fields, differences
from flare_ds.exceptions import ConfigError
from flare_ds.runs import RunDirectory
from flare_ds.runs.directory import CACHE
from flare_ds.tasks.base import Task
from flare_ds.tokenizing.fingerprint import tokenizer_fingerprint

_LANGUAGES = ("source_language", "extra_source_languages", "target_language")
_COMPARED = ("prompt_template", "labels", "special_tokens", PROBES)


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
        ConfigError: the prompt, the label words, the tokenizer or its chat template are not those of the run, or the
            language asked has label words that the run's head has no rows for.
    """
    recorded = RunDirectory(config.run_dir).record(CACHE).get("fields", {})
    own = config.having("task", **{name: recorded[name] for name in _LANGUAGES if name in recorded})
    asked = {name: value for name, value in asked_fields(own, task).items() if name in _COMPARED}
    now: dict[str, Any] = asked | chat_fields(config, tokenizer)
    now["tokenizer_sha256"] = tokenizer_fingerprint(tokenizer)
    known = {name: value for name, value in recorded.items() if None not in (value, now.get(name))}
    if known and (changed := differences(known, {name: now[name] for name in known})):
        raise ConfigError(
            f"{config.run_dir} was trained to answer other questions: {'; '.join(changed)}",
            fix="restore the task file and the tokenizer it was trained with, or train a new run",
        )
    trains_head = config.recipe.trains and config.adapter.train_head
    if "labels" in known and trains_head and config.train.objective == "labels":
        _check_head(config, task, known["labels"])


def _check_head(config: Config, task: Task, trained: list[str]) -> None:
    """A head that was trained for the label words alone says no others."""
    words = list(task.label_words(config.answer_language))
    if words != trained:
        raise ConfigError(
            f"task {task.name} has the label words {words} in {config.answer_language}, but {config.run_dir} has a "
            f"head that was trained for {trained} alone (adapter.train_head=true with train.objective=labels)",
            fix="ask it in a language with the same words, or train a run with train.objective=vocabulary",
        )
