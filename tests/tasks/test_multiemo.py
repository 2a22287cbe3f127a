"""MultiEmo: rows, prompts and what is said about files that are not as they should be."""

import json
from pathlib import Path

import pytest

from flare_ds.exceptions import ConfigError, DataError
from flare_ds.tasks import TASKS

TASK = TASKS.get("multiemo")


def example(text: object, label: str) -> dict:
    words = ("ambivalent", "positive", "negative", "neutral")
    return {"input": text, "target_scores": {word: int(word == label) for word in words}}


def write(directory: Path, domain: str, language: str, examples: object) -> Path:
    path = directory / f"{domain}_sentence_{language}.json"
    path.write_text(json.dumps({"name": "x", "examples": examples}), encoding="utf-8")
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write(tmp_path, "medicine", "en", [example(" It helped. ", "positive"), example("Zażółć", "neutral")])
    write(tmp_path, "products", "en", [example("It broke.", "negative"), example("So so.", "ambivalent")])
    return tmp_path


def test_reads_both_domains_with_ids_texts_and_labels(directory: Path) -> None:
    found = [(row.id, row.fields["text"], TASK.labels[row.label]) for row in TASK.read(str(directory), "en", "all")]
    assert found == [
        ("medicine-0", "It helped.", "positive"),
        ("medicine-1", "Zażółć", "neutral"),
        ("products-0", "It broke.", "negative"),
        ("products-1", "So so.", "ambivalent"),
    ]


def test_portuguese_has_products_only_even_if_the_unaligned_file_is_there(tmp_path: Path) -> None:
    write(tmp_path, "medicine", "pt", [example("Errada", "neutral")])
    write(tmp_path, "products", "pt", [example("Partiu-se.", "negative")])
    assert [row.id for row in TASK.read(str(tmp_path), "pt", "all")] == ["products-0"]
    assert not TASK.covers("medicine-0", "pt")
    assert TASK.covers("products-0", "pt") and TASK.covers("medicine-0", "pl")


def test_prompt_holds_the_text_and_is_continued_by_a_space_and_a_label_word() -> None:
    prompt = TASK.prompt({"text": "It {broke}."})
    assert prompt == "Review: It {broke}.\nSentiment:"
    assert not prompt[-1].isspace()
    assert all(word == word.strip().lower() for word in TASK.labels)


def test_unknown_language_names_the_nearest(directory: Path) -> None:
    with pytest.raises(DataError, match=r"no language 'pll'[\s\S]*did you mean 'pl'"):
        TASK.read(str(directory), "pll", "all")


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'multiemo'"):
        TASKS.get("multiemoo")


def test_missing_file_names_it_and_the_fetch_command(directory: Path) -> None:
    with pytest.raises(DataError, match=r"medicine_sentence_pl\.json[\s\S]*flare-ds fetch data multiemo"):
        TASK.read(str(directory), "pl", "all")


def test_it_is_nowhere_on_the_hub_so_files_are_asked_for() -> None:
    with pytest.raises(DataError, match=r"not on the hub[\s\S]*flare-ds fetch data multiemo"):
        TASK.read(None, "pl", "all")


def test_one_pool_from_polish_sentences() -> None:
    assert (TASK.pools, TASK.original_language, TASK.parallel) == (("all",), "pl", True)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (example(None, "positive"), "input=None"),
        ({"input": "no label"}, "no column 'target_scores'"),
        ("not a mapping", "is not an object"),
        ({"input": "x", "target_scores": None}, "target_scores=None"),
        (example("no label chosen", "great"), "exactly one of"),
        ({"input": "x", "target_scores": dict.fromkeys(TASK.labels, 1)}, "exactly one of"),
        ({"input": "x", "target_scores": {**dict.fromkeys(TASK.labels, 0), "positive": 1, "good": 0}}, "exactly one"),
    ],
)
def test_malformed_row_is_named(directory: Path, bad: object, said: str) -> None:
    path = write(directory, "medicine", "en", [example("fine", "neutral"), bad])
    with pytest.raises(DataError, match=f"row 1 of {path}.*{said}"):
        TASK.read(str(directory), "en", "all")


@pytest.mark.parametrize("content", ["{", "[]", '{"examples": []}', '{"examples": 3}', "{}"])
def test_a_file_that_is_something_else_is_named(directory: Path, content: str) -> None:
    path = directory / "products_sentence_en.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=str(path)):
        TASK.read(str(directory), "en", "all")
