"""docs/tasks.md: its examples run as they are printed, and its tables say what the tasks are."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from flare_ds.config import TaskConfig
from flare_ds.tasks import TASKS, Answer, Row, TableTask
from flare_ds.tasks.load import task_of
from tests.docs.blocks import blocks
from tests.toy import REPOSITORY

PAGE = (REPOSITORY / "docs/tasks.md").read_text(encoding="utf-8")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every file that the page prints, under the name that stands before it."""
    for block in blocks(REPOSITORY / "docs/tasks.md"):
        if block.file:
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(name: str, path: str) -> tuple:
    config = TaskConfig(name=name, path=path, data_dir="data", target_language="pl")
    return task_of(config), config.data_dir


def test_the_yaml_example(directory: Path) -> None:
    task, data_dir = load("topics", "topics.yaml")
    (directory / "data/en/dev.jsonl").write_bytes((directory / "data/en/train.jsonl").read_bytes())
    assert list(task.read(data_dir, "pl", "train")) == [
        Row("train-0", {"title": "Dwa gole", "text": "Wygrali w ostatniej minucie."}, 0),
        Row("train-1", {"title": "Głosowanie", "text": "Ustawa przeszła."}, 1),
    ]
    (first, _) = task.read(data_dir, "en", "test")
    assert task.prompt(first.fields) == "Title: Two goals\nText: They won in the last minute.\nTopic:"


def test_the_example_with_free_answers(directory: Path) -> None:
    """Questions about one passage stay in one split, though nobody says so."""
    config = TaskConfig(name="xquad", path="xquad.yaml", data_dir="data", sides="own", target_language="hi")
    task = task_of(config)
    (directory / "data/xquad.hi").mkdir()
    asked = [{"id": str(n), "context": "Rome is old.", "question": f"{n}?"} for n in range(2)]
    records = [one | {"answers": {"text": ["Rome"], "answer_start": [0]}} for one in asked]
    (directory / "data/xquad.hi/validation.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    first, second = task.read(config.data_dir, "hi", "all")
    assert task.prompt(second.fields) == "Context: Rome is old.\nQuestion: 1?\nAnswer:"
    assert first == Row("0", {"context": "Rome is old.", "question": "0?"}, None, (Answer("Rome", 0),))
    assert task.split_fields == ("context",) == (task.long_field,) and task.metric == "exact_match"
    said = {"name": "a", "languages": ("en",), "pools": ("all",), "fields": ("b", "c"), "template": "{b}{c}"}
    labelled = TableTask(**said, labels=("d", "e"))
    assert labelled.split_fields == ("b", "c")


def test_the_python_example(directory: Path) -> None:
    task, data_dir = load("tickets", "tickets.py")
    (directory / "data/de.tsv").write_text("Alles\u2028brennt\thigh\nAlles gut\tlow\n", encoding="utf-8")
    first, second = task.read(data_dir, "de", "all")
    assert (first, second.label) == (Row("ticket-0", {"text": "Alles\u2028brennt"}, 1), 0)
    assert task.prompt(first.fields) == "Ticket: Alles\u2028brennt\nUrgency:"


def test_the_example_with_prompts_by_language(directory: Path) -> None:
    task, data_dir = load("opinions", "opinions.yaml")
    (directory / "data/en/all.jsonl").write_text('{"text": "Fine.", "label": "yes"}\n', encoding="utf-8")
    (directory / "data/pl/all.jsonl").write_text('{"text": "Super.", "label": "tak"}\n', encoding="utf-8")
    for language, prompt in (("en", "Review: Fine.\nRecommended?"), ("pl", "Opinia: Super.\nPolecana?")):
        (row,) = task.read(data_dir, language, "all")
        assert task.prompt_in(language, row.fields) == prompt and row.label == 1
    assert (task.label_words("en"), task.label_words("pl")) == (("no", "yes"), ("nie", "tak"))


def test_the_table_of_tasks_has_their_languages() -> None:
    printed = dict(re.findall(r"^\| (\w+) \|[^|]*\| ([a-z ]+) \| (?:own|translated) \|", PAGE, re.MULTILINE))
    shipped = [name for name in TASKS if type(TASKS.get(name)).__module__.startswith("flare_ds.")]  # no test's own
    for name in shipped:
        others = [code for code in TASKS.get(name).languages if code != "en"]
        assert sorted(printed[name].split()) == sorted(others or ["none"])


def test_every_key_of_a_declaration_is_explained() -> None:
    keys = [field.name for field in dataclasses.fields(TableTask)]
    assert [key for key in keys if not re.search(rf"(^|`){key}(:|`)", PAGE, re.MULTILINE)] == []
