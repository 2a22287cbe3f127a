"""A run is asked what it was trained to answer, or nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from flare_ds.config import Config
from flare_ds.data.cache import open_cache, prepare_cache
from flare_ds.data.cache.key import asked_fields
from flare_ds.evaluation.same_questions import check_same_questions, check_same_split
from flare_ds.exceptions import ConfigError
from flare_ds.files import write_json
from flare_ds.tasks import TASKS, TableTask
from flare_ds.tasks.base import Task
from flare_ds.tasks.load import task_of
from flare_ds.tokenizing.fingerprint import tokenizer_fingerprint
from tests.toy import WORDS, toy_settings, word_tokenizer


class OtherPrompt(Task):
    """The task, with another prompt or other label words than it had."""

    def __init__(self, task: Task, *, prompt: str = "", labels: tuple[str, ...] = ()) -> None:
        self.task, self.said, self.labels = task, prompt, labels or task.labels
        self.name, self.version, self.fields = task.name, task.version, task.fields
        self.languages, self.pools, self.original_language = task.languages, task.pools, task.original_language

    def read(self, data_dir: str | None, language: str, pool: str) -> list:
        raise AssertionError("nothing is read")

    def prompt(self, fields: dict[str, str]) -> str:
        return self.said + self.task.prompt(fields)


def test_another_prompt_label_or_tokenizer_is_refused(tmp_path: Path) -> None:
    config = Config.model_validate(toy_settings(tmp_path))
    task, tokenizer = task_of(config.task), word_tokenizer()
    check_same_questions(config, task, tokenizer)  # there is no run yet
    cache = open_cache(prepare_cache(config, tokenizer))
    write_json(Path(config.run_dir) / "cache.json", {"key": cache.key, "fields": cache.manifest.fields})
    check_same_questions(config, task, tokenizer)
    others = {
        "prompt_template": (OtherPrompt(task, prompt="Well: "), tokenizer),
        "labels": (OtherPrompt(task, labels=tuple(reversed(task.labels))), tokenizer),
        "tokenizer_sha256": (task, word_tokenizer([*WORDS[1:], WORDS[0]])),
    }
    for name, (asked, words) in others.items():
        with pytest.raises(ConfigError, match=f"other questions: {name}: "):
            check_same_questions(config, asked, words)


class OneBlank(OtherPrompt):
    """The task, whose prompt is code that makes one blank of two."""

    def prompt(self, fields: dict[str, str]) -> str:
        return super().prompt({name: text.replace("  ", " ") for name, text in fields.items()})


def test_a_prompt_in_code_that_says_texts_otherwise_is_refused(tmp_path: Path) -> None:
    """Around the names of the fields it is what it was."""
    settings = toy_settings(tmp_path)
    settings["task"]["path"] = str(tmp_path / "own.py")
    config, tokenizer = Config.model_validate(settings), word_tokenizer()
    task = TASKS.get("multiemo")
    fields = asked_fields(config, task) | {"tokenizer_sha256": tokenizer_fingerprint(tokenizer)}
    write_json(Path(config.run_dir) / "cache.json", {"fields": fields})
    check_same_questions(config, OtherPrompt(task), tokenizer)
    with pytest.raises(ConfigError, match="other questions: prompts_of_texts: "):
        check_same_questions(config, OneBlank(task), tokenizer)


BY_LANGUAGE = TableTask(
    name="a",
    languages=("en", "pl", "es"),
    pools=("all",),
    fields=("text",),
    labels={"en": ("no", "yes"), "pl": ("nie", "tak"), "es": ("no", "si")},
    template={"en": "{text}?", "pl": "Czy {text}?", "es": "Es {text}?"},
)


def run_of(tmp_path: Path, **settings: dict) -> Config:
    """A Polish run of that task, begun."""
    config = Config.model_validate(toy_settings(tmp_path, method="lora") | settings)
    fields = asked_fields(config, BY_LANGUAGE) | {"tokenizer_sha256": tokenizer_fingerprint(word_tokenizer())}
    write_json(Path(config.run_dir) / "cache.json", {"fields": fields})
    return config


def test_another_language_is_asked_in_its_own_words(tmp_path: Path) -> None:
    """What the task says in the run's own language has to be as it was."""
    polish = run_of(tmp_path)
    spanish = polish.model_copy(update={"task": polish.task.model_copy(update={"target_language": "es"})})
    check_same_questions(polish, BY_LANGUAGE, word_tokenizer())
    check_same_questions(spanish, BY_LANGUAGE, word_tokenizer())
    changed = replace(BY_LANGUAGE, labels={**BY_LANGUAGE.labels, "pl": ("tak", "nie")})
    with pytest.raises(ConfigError, match=r"other questions: labels: \['tak', 'nie'\], not \['nie', 'tak'\]"):
        check_same_questions(spanish, changed, word_tokenizer())


def test_a_head_of_label_words_alone_is_asked_for_no_others(tmp_path: Path) -> None:
    polish = run_of(tmp_path, adapter={"train_head": True})
    spanish = polish.model_copy(update={"task": polish.task.model_copy(update={"target_language": "es"})})
    check_same_questions(polish, BY_LANGUAGE, word_tokenizer())
    with pytest.raises(
        ConfigError, match=r"words \['no', 'si'\] in es, but .* head that was trained for \['nie', 'tak'\]"
    ):
        check_same_questions(spanish, BY_LANGUAGE, word_tokenizer())
    whole = spanish.model_copy(update={"train": spanish.train.model_copy(update={"objective": "vocabulary"})})
    check_same_questions(whole, BY_LANGUAGE, word_tokenizer())


def test_rows_that_another_language_dealt_are_refused(tmp_path: Path) -> None:
    """A run of before this was told may have been trained on what is in the test split now."""
    config = Config.model_validate(toy_settings(tmp_path))
    task = TableTask(name="a", languages=("de", "en", "pl"), pools=("all",), fields=("text",), template="{text}:")
    check_same_split(config, task)  # there is no run yet
    record = Path(config.run_dir) / "cache.json"
    write_json(record, {"fields": {"task": "a"}})
    with pytest.raises(ConfigError, match=r"split by the text in de, and .* split otherwise: its test rows may be"):
        check_same_split(config, task)
    check_same_split(config, replace(task, languages=("en", "de", "pl")))
    write_json(record, {"fields": {"task": "a", "split_language": "de"}})
    check_same_split(config, task)
