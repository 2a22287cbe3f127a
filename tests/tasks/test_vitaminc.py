"""VitaminC: rows taken apart, the split by page, and what is said about rows that are not as they should be."""

import json
from pathlib import Path

import pytest

from flare_ds.config import TaskConfig
from flare_ds.data.parallel import load_parallel
from flare_ds.exceptions import DataError
from flare_ds.tasks import TASKS

TASK = TASKS.get("vitaminc")


def example(page: str, evidence: str, claim: str, label: str) -> dict:
    scores = {word: int(word == label) for word in ("True", "False", "Neither")}
    return {"input": f"{page}: {evidence}\nClaim: {claim}", "target_scores": scores}


def write(directory: Path, examples: object) -> Path:
    path = directory / "vitaminc.json"
    path.write_text(json.dumps({"canary": "x", "examples": examples}), encoding="utf-8")
    return path


def test_rows_have_page_evidence_claim_and_label(tmp_path: Path) -> None:
    first = example("Alien-COLON- Covenant -LRB-film-RRB-", "It was seen by 2 : 1 [ 3 ] .", "Many: saw it .", "False")
    write(
        tmp_path, [first, example("Oslo", "Cold .", "Warm .", "Neither"), example("Oslo", "Cold .", "Cold .", "True")]
    )
    rows = list(TASK.read(str(tmp_path), "en", "all"))
    assert rows[0].fields == {
        "page": "Alien: Covenant (film)",
        "evidence": "It was seen by 2 : 1 [ 3 ] .",
        "claim": "Many: saw it .",
    }
    assert [(row.id, TASK.labels[row.label]) for row in rows] == [("0", "false"), ("1", "neither"), ("2", "true")]


def test_prompt_has_a_line_for_each_field_and_is_continued_by_a_label_word() -> None:
    prompt = TASK.prompt({"page": "Oslo", "evidence": "Cold .", "claim": "It is {cold} ."})
    assert prompt == "Page: Oslo\nEvidence: Cold .\nClaim: It is {cold} .\nAnswer:"


def test_pages_stay_together_and_only_english_is_there(tmp_path: Path) -> None:
    pages = [f"Page {number}" for number in range(60)]
    rows = [example(page, f"{page} has {n} .", f"Two is not {n} .", "True") for n in range(3) for page in pages]
    write(tmp_path, rows)
    config = TaskConfig(name="vitaminc", data_dir=str(tmp_path), target_language="en")
    splits = load_parallel(TASK, config).splits
    found = {split: {row.target.fields["page"] for row in rows} for split, rows in splits.items()}
    assert sum(len(rows) for rows in splits.values()) == 180
    assert sum(len(pages) for pages in found.values()) == 60
    assert all(found.values())
    with pytest.raises(DataError, match=r"no language 'pt'"):
        TASK.read(str(tmp_path), "pt", "all")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("no mapping", "is not an object"),
        ({"input": 3, "target_scores": {}}, "has input=3, not a text"),
        ({"target_scores": {}}, "has no column 'input'"),
        ({"input": "Oslo: Cold .", "target_scores": {}}, "not `<page>: <evidence>`"),
        ({"input": "Oslo\nClaim: Cold: yes .", "target_scores": {}}, "not `<page>: <evidence>`"),
        (example("Oslo", "Cold .", "Warm .", "Maybe"), "exactly one of True, False, Neither"),
        ({**example("O", "C", "W", "True"), "target_scores": None}, "target_scores=None"),
        ({**example("O", "C", "W", "True"), "target_scores": {"True": 1}}, "exactly one of"),
        ({**example("O", "C", "W", "True"), "target_scores": {"True": 1, "False": 1, "Neither": 0}}, "exactly one of"),
    ],
)
def test_malformed_row_is_named(tmp_path: Path, bad: object, said: str) -> None:
    path = write(tmp_path, [example("Oslo", "Cold .", "Cold .", "True"), bad])
    with pytest.raises(DataError, match=f"row 1 of {path}.*{said}"):
        list(TASK.read(str(tmp_path), "en", "all"))


@pytest.mark.parametrize("content", ["{", "[]", '{"examples": []}', '{"examples": 3}', "{}"])
def test_a_file_that_is_something_else_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "vitaminc.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"{path}[\\s\\S]*flare-ds fetch data vitaminc"):
        TASK.read(str(tmp_path), "en", "all")


def test_without_files_the_fetch_command_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vitaminc\.json[\s\S]*flare-ds fetch data vitaminc"):
        TASK.read(str(tmp_path), "en", "all")
    with pytest.raises(DataError, match=r"not on the hub[\s\S]*flare-ds fetch data vitaminc"):
        TASK.read(None, "en", "all")
