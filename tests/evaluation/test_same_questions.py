"""A run is asked what it was trained to answer, or nothing."""

from pathlib import Path

import pytest

from flare_ds.config import Config
from flare_ds.data.cache import open_cache, prepare_cache
from flare_ds.evaluation.same_questions import check_same_questions
from flare_ds.exceptions import ConfigError
from flare_ds.files import write_json
from flare_ds.tasks.base import Task
from flare_ds.tasks.load import task_of
from tests.toy import WORDS, toy_settings, word_tokenizer


class OtherPrompt(Task):
    """The task, with another prompt or other label words than it had."""

    def __init__(self, task: Task, *, prompt: str = "", labels: tuple[str, ...] = ()) -> None:
        self.task, self.said, self.labels = task, prompt, labels or task.labels
        self.name, self.version, self.fields = task.name, task.version, task.fields

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
