"""XNLI, NusaX and TyDiQA, on small tables with the columns, types and names that they have on the hub."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from datasets import Features

from flare_ds.exceptions import DataError
from flare_ds.tasks import NUSAX, TYDIQA, XNLI, Answer, Row, TableTask
from flare_ds.tasks.cells import locate
from tests.tasks import tables
from tests.tasks.tables import SUFFIXES, write_table

XNLI_EN = [
    {"premise": "A dog runs.", "hypothesis": "An animal moves.", "label": 0},
    {"premise": "NA", "hypothesis": 'She said "no",\r\nthen left.', "label": 1},
    {"premise": "It rains.", "hypothesis": "", "label": 2},
]
XNLI_RO = [
    Row("train-0", {"premise": "A dog runs.", "hypothesis": "An animal moves."}, 0),
    Row("train-1", {"premise": "NA", "hypothesis": 'She said "no",\r\nthen left.'}, 1),
    Row("train-2", {"premise": "It rains.", "hypothesis": ""}, 2),
]
NUSAX_ROWS = [
    {"id": "237", "text": "Slow, and also expensive. ", "lang": "eng", "label": 0},
    {"id": "101", "text": "Toyota releases a car.", "lang": "eng", "label": 1},
    {"id": "5", "text": "Mangat that 😀", "lang": "eng", "label": 2},
]


def tydiqa(row_id: str, context: str, *answers: tuple[str, int]) -> dict:
    texts, starts = zip(*answers, strict=True)
    found = {"text": list(texts), "answer_start": list(starts)}
    return {"id": row_id, "title": "t", "context": context, "question": "who?", "answers": found}


TYDIQA_ROWS = [
    tydiqa("arabic-1-0", "ولد عمر في مكة", ("مكة", 11)),
    tydiqa("english-2-1", "Ann met Bob and Ann.", ("Ann", 16)),
    tydiqa("english-3-0", "Ann met Bob and Ann.", ("Ann", 14), ("Bob", 0), ("Eve", 3), ("Ann", -20)),
    tydiqa("korean-4-0", "김구는 서울에서", ("서울", 4)),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_xnli_rows(tmp_path: Path, suffix: str) -> None:
    write_table(tmp_path / f"en/train.{suffix}", XNLI_EN, tables.XNLI)
    assert list(XNLI.read(str(tmp_path), "en", "train")) == XNLI_RO
    fields = XNLI_RO[0].fields
    assert XNLI.prompt(fields) == "Premise: A dog runs.\nHypothesis: An animal moves.\nLabel:"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nusax_rows_meet_by_id_and_english_lies_under_eng(tmp_path: Path, suffix: str) -> None:
    write_table(tmp_path / f"eng/validation.{suffix}", NUSAX_ROWS, tables.NUSAX)
    rows = list(NUSAX.read(str(tmp_path), "en", "validation"))
    assert [(row.id, row.fields["text"], NUSAX.labels[row.label or 0]) for row in rows] == [
        ("237", "Slow, and also expensive. ", "negative"),
        ("101", "Toyota releases a car.", "neutral"),
        ("5", "Mangat that 😀", "positive"),
    ]
    assert NUSAX.prompt({"text": "Slow {x}"}) == "Slow {x}\nSentiment:"


def test_nusax_labels_may_be_words_as_in_its_own_repository(tmp_path: Path) -> None:
    words = [{"id": 7, "text": "a", "label": "positive"}, {"id": 8, "text": "b", "label": "negative"}]
    write_table(tmp_path / "ace/test.csv", words)
    assert [(row.id, row.label) for row in NUSAX.read(str(tmp_path), "ace", "test")] == [("7", 2), ("8", 0)]


@pytest.mark.parametrize("folder", ["", "secondary_task/"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tydiqa_rows_of_a_language_are_those_its_ids_begin_with(tmp_path: Path, suffix: str, folder: str) -> None:
    write_table(tmp_path / f"{folder}validation.{suffix}", TYDIQA_ROWS, tables.TYDIQA)
    found = {code: list(TYDIQA.read(str(tmp_path), code, "test")) for code in ("ar", "en", "ko")}
    assert [row.id for row in found["en"]] == ["english-2-1", "english-3-0"]
    assert [row.id for row in found["ko"]] == ["korean-4-0"]
    (arabic,) = found["ar"]
    assert (arabic.answers, arabic.label) == ((Answer("مكة", 11),), None)
    assert TYDIQA.prompt(arabic.fields) == "Context: ولد عمر في مكة\nQuestion: who?\nAnswer:"


def test_a_start_beside_its_answer_is_mended_and_a_strange_answer_keeps_its_text(tmp_path: Path) -> None:
    write_table(tmp_path / "validation.parquet", TYDIQA_ROWS, tables.TYDIQA)
    right, wrong = TYDIQA.read(str(tmp_path), "en", "test")
    assert right.answers == (Answer("Ann", 16),)
    assert wrong.answers == (Answer("Ann", 16), Answer("Bob", 8), Answer("Eve", None), Answer("Ann", 0))
    for answer in (*right.answers, *wrong.answers):
        if answer.start is not None:
            assert right.fields["context"][answer.start :].startswith(answer.text)


@pytest.mark.parametrize(
    ("answer", "context", "found"),
    [
        ("caf\u00e9", "at a cafe\u0301, a cafe\u0301 here", Answer("cafe\u0301", 14)),
        ("cafe\u0301", "at a caf\u00e9", Answer("caf\u00e9", 5)),
        ("\u09dc", "\u09ac\u09a1\u09bc", Answer("\u09a1\u09bc", 1)),
        ("\ud55c", "\u1112\u1161\u11ab \u1100", Answer("\u1112\u1161\u11ab", 0)),
        ("q\u0307\u0323", "aq\u0323\u0307", Answer("q\u0323\u0307", 1)),
        ("\u00e0", "a\u0300\u0323", Answer("\u00e0", None)),  # another letter: it has a second mark
    ],
)
def test_an_answer_is_found_in_either_unicode_form_and_written_as_in_its_context(
    answer: str, context: str, found: Answer
) -> None:
    assert locate(answer, context, near=12) == found
    assert found.start is None or context[found.start :].startswith(found.text)


def test_answers_may_be_a_list_of_pairs_too(tmp_path: Path) -> None:
    pairs = [{**TYDIQA_ROWS[3], "answers": [{"text": "서울", "answer_start": 4}]}]
    write_table(tmp_path / "train.jsonl", pairs)
    (row,) = TYDIQA.read(str(tmp_path), "ko", "train")
    assert row.answers == (Answer("서울", 4),)


def test_a_language_that_the_table_lacks_is_named(tmp_path: Path) -> None:
    path = write_table(tmp_path / "train.parquet", TYDIQA_ROWS, tables.TYDIQA)
    with pytest.raises(DataError, match=rf"{path} holds no row of language 'te'[\s\S]*'telugu-'"):
        list(TYDIQA.read(str(tmp_path), "te", "train"))


def test_what_the_tasks_say_of_themselves() -> None:
    assert [len(task.languages) for task in (XNLI, NUSAX, TYDIQA)] == [15, 12, 9]
    assert [task.metric for task in (XNLI, NUSAX, TYDIQA)] == ["accuracy", "macro_f1", "exact_match"]
    assert (XNLI.parallel, NUSAX.parallel, TYDIQA.parallel) == (True, True, False)
    assert TYDIQA.free_answers and TYDIQA.split_fields == ("context",) and TYDIQA.original_language is None


def hub_of(task: TableTask, root: Path, files: dict[str, list[dict]], features: Features) -> TableTask:
    """The task with its hub name pointing to a directory, which `datasets` reads by the same rules as a repository."""
    for name, rows in files.items():
        write_table(root / name, rows, features)
    return replace(task, hub=str(root))


@pytest.fixture(autouse=True)
def _own_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hub_cache"))


def test_configs_of_the_hub_are_languages(tmp_path: Path) -> None:
    other = [{**row, "premise": f"de {row['premise']}"} for row in XNLI_EN]
    files = {"tables/en-train.parquet": XNLI_EN, "tables/de-train.parquet": other}
    task = hub_of(XNLI, tmp_path / "xnli", files, tables.XNLI)
    configs = [{"config_name": code, "data_files": f"tables/{code}-*.parquet"} for code in ("en", "de")]
    (tmp_path / "xnli/README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n", encoding="utf-8")
    assert list(task.read(None, "en", "train")) == XNLI_RO
    assert next(iter(task.read(None, "de", "train"))).fields["premise"] == "de A dog runs."


def test_the_conversion_of_a_loading_script_has_folders_for_configs(tmp_path: Path) -> None:
    acehnese = [{**row, "text": f"ace {row['id']}"} for row in NUSAX_ROWS]
    files = {
        "eng/train/0000.parquet": NUSAX_ROWS,
        "ace/train/0000.parquet": acehnese,
        "ace/test/0000.parquet": NUSAX_ROWS,
    }
    task = hub_of(NUSAX, tmp_path / "nusax", files, tables.NUSAX)
    assert [row.fields["text"] for row in task.read(None, "ace", "train")] == ["ace 237", "ace 101", "ace 5"]
    assert [row.label for row in task.read(None, "en", "train")] == [0, 1, 2]
    assert list(task.read(str(tmp_path / "nusax"), "en", "train")) == list(task.read(None, "en", "train"))


def test_tydiqa_is_read_from_the_secondary_task(tmp_path: Path) -> None:
    primary = [{**row, "id": f"english-9-{number}"} for number, row in enumerate(TYDIQA_ROWS)]
    files = {
        "primary_task/train-00000-of-00001.parquet": primary,
        "secondary_task/validation-00000-of-00001.parquet": TYDIQA_ROWS,
    }
    task = hub_of(TYDIQA, tmp_path / "tydiqa", files, tables.TYDIQA)
    configs = [
        {"config_name": "primary_task", "data_files": "primary_task/*.parquet"},
        {"config_name": "secondary_task", "data_files": [{"split": "validation", "path": "secondary_task/val*"}]},
    ]
    (tmp_path / "tydiqa/README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n", encoding="utf-8")
    assert [row.id for row in task.read(None, "en", "test")] == ["english-2-1", "english-3-0"]


def test_languages_may_lie_in_data_sets_of_their_own(tmp_path: Path) -> None:
    """English to train on in one, a language with a test set alone in another."""
    other = [{**row, "premise": f"xh {row['premise']}"} for row in XNLI_EN]
    for name, code, split, rows in (("xnli", "en", "train", XNLI_EN), ("afrixnli", "sw", "test", other)):
        hub_of(XNLI, tmp_path / name, {f"tables/{code}-{split}.parquet": rows}, tables.XNLI)
        files = [{"split": split, "path": f"tables/{code}-{split}.parquet"}]
        configs = yaml.safe_dump({"configs": [{"config_name": code, "data_files": files}]})
        (tmp_path / name / "README.md").write_text(f"---\n{configs}---\n", encoding="utf-8")
    hub = {"en": str(tmp_path / "xnli"), "sw": str(tmp_path / "afrixnli")}
    task = replace(XNLI, hub=hub, parallel=False)
    assert list(task.read(None, "en", "train")) == XNLI_RO
    assert next(iter(task.read(None, "sw", "test"))).fields["premise"] == "xh A dog runs."
    with pytest.raises(DataError, match="language 'de', is not on the hub"):
        task.read(None, "de", "test")
    with pytest.raises(ValueError, match="parallel: false"):
        replace(XNLI, hub=hub)


def test_an_unreachable_hub_names_the_data_set_and_the_way_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot load facebook/xnli \(sw, test\) from the hub[\s\S]*task\.data_dir"):
        XNLI.read(None, "sw", "test")
