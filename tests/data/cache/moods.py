"""A task whose rows are sequences of words, in four languages, and a tokenizer that knows those words."""

import itertools
import os
import signal
from collections.abc import Callable, Mapping
from multiprocessing import parent_process
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from flare_ds.config import Config
from flare_ds.settings import parse_config
from flare_ds.tasks.base import TASKS, Pool, Row, Task

COLOURS = ("red", "blue", "green", "grey")
WORDS = [*COLOURS, "say", ":", "mood", "good", "bad", "<unk>", "<bos>", "<eos>", "<pad>"]
ROWS = 240


class Moods(Task):
    """Every row is a different sequence of colour words; the other languages say them as `said_in` has it."""

    name = "moods"
    version = 1
    languages = ("en", "de", "fr", "pl")
    original_language = "en"
    labels = ("good", "bad")

    def read(self, data_dir: str | None, language: str, pool: Pool) -> list[Row]:
        assert data_dir is not None and pool == "all"
        rows = []
        for index, line in enumerate((Path(data_dir) / "en.txt").read_text(encoding="utf-8").splitlines()):
            words = said_in(language, line.split())
            rows.append(Row(f"rów-{index}", {"text": " ".join(words)}, index % 2))
        return rows

    def prompt(self, fields: Mapping[str, str]) -> str:
        return f"say : {fields['text']} mood :"


def said_in(language: str, words: list[str]) -> list[str]:
    """`de` is English backwards, `fr` says everything twice, `pl` leaves the first word out."""
    return {"en": words, "de": words[::-1], "fr": words * 2, "pl": words[1:]}[language]


class NestedMoods(Moods):
    """Runs something else in the middle of a build, once."""

    name = "nested_moods"
    meanwhile: Callable[[], object] | None = None

    def prompt(self, fields: Mapping[str, str]) -> str:
        of_a_row = bool(fields["text"]) and "{" not in fields["text"]  # not the template, for the key or by itself
        if self.meanwhile is not None and of_a_row:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        return super().prompt(fields)


class DeadlyMoods(Moods):
    """Kills the worker process it is used in, as an out-of-memory killer would."""

    name = "deadly_moods"

    def prompt(self, fields: Mapping[str, str]) -> str:
        if parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prompt(fields)


MOODS, NESTED, DEADLY = Moods(), NestedMoods(), DeadlyMoods()
for task in (MOODS, NESTED, DEADLY):
    TASKS.add(task.name, task)


def word_tokenizer(**special: str | None) -> PreTrainedTokenizerFast:
    """One token a word; puts <bos> in front and <eos> behind, as some tokenizers do."""
    ids = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(word, ids[word]) for word in ("<bos>", "<eos>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    chosen = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **chosen)


def eos_first(template: str = "<eos> $A") -> PreTrainedTokenizerFast:
    """One whose first special token is eos as well."""
    tokenizer = word_tokenizer(bos_token="<eos>")
    ends = [("<eos>", WORDS.index("<eos>"))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    return tokenizer


def write_data(directory: Path, rows: int = ROWS) -> None:
    """The English words of that many rows."""
    directory.mkdir()
    sentences = itertools.islice(itertools.product(COLOURS, repeat=6), rows)
    lines = [" ".join(words[: 3 + index % 4]) + f" unseen{index}" for index, words in enumerate(sentences)]
    (directory / "en.txt").write_text("\n".join(lines), encoding="utf-8")


def read_lines(root: Path) -> list[list[str]]:
    """The words of each row."""
    return [line.split() for line in (root / "data/en.txt").read_text(encoding="utf-8").splitlines()]


def moods_config(root: Path, name: str = "moods", **task_settings: object) -> Config:
    """A config on the data below `root`."""
    settings = {"name": name, "data_dir": str(root / "data"), "target_language": "de"} | task_settings
    return parse_config(
        {
            "method": "lora",
            "run_dir": "unused",
            "cache_dir": str(root / "caches"),
            "model": {"base": "unused"},
            "task": settings,
            "train": {"steps": 1},
        },
        origin="test",
    )


def directory_bytes(directory: Path) -> dict[str, bytes]:
    """Every file of a directory."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}
