"""SQuAD and its Hindi part: made files of both schemas, laid out as the real ones are where the task looks."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from flare_ds.config import TaskConfig
from flare_ds.data.parallel import load_parallel
from flare_ds.exceptions import DataError
from flare_ds.tasks import TASKS
from flare_ds.tasks.squad_hi_rows import FIRST_ROWS
from tests.test_benchmarks import run_benchmark

TASK = TASKS.get("squad_hi")
PASSAGE = 'रोलो ने 911 में कहा, "हाँ।" उसने दो शहर लिए। बाद में और भी मिले: दो नगर [citation needed]'
# "Normans": paragraphs 4, 8 and 11 begin at rows 140, 141 and 143.


def question(text: str, *answers: tuple[str, int]) -> dict:
    return {"id": "56", "question": text, "answers": [{"text": text, "answer_start": at} for text, at in answers]}


def english_file() -> dict:
    """Twelve paragraphs, of which the fifth, the ninth and the twelfth are in Hindi too."""
    plain = {"context": "He ruled.", "qas": [question("Who?", ("He", 0))]}
    paragraphs = [
        {**plain, "context": f"{number}. He ruled.", "qas": [question("Who?", ("He", 3))]} for number in range(12)
    ]
    paragraphs[4] = {
        "context": "Rollo came from the north in 911.",
        "qas": [question("When? ", ("911", 29), ("911", 29))],
    }
    context = 'Rollo said in 911: "yes". He took two towns. Two more followed.'
    answers = ("two towns", 0), ("two", 33), ("Two", 45)
    paragraphs[8] = {
        "context": context,
        "qas": [question("What did he take?", *answers), question("When?", ("911", 14))],
    }
    return {"data": [{"title": "Normans", "paragraphs": paragraphs}, {"title": "Elsewhere", "paragraphs": [plain]}]}


def hindi_file() -> dict:
    """Rows of other sources, and those of the three paragraphs."""
    rows = [{"input": f"और {number} कुछ। कौन?", "target": "और"} for number in range(144)]
    rows[140] = {"input": '\ufeffरोलो 911 में आया। वह उत्तर से आया। " कब, दिन में या रात में? ', "target": "911"}
    rows[141] = {"input": f"{PASSAGE} उसने क्या लिया?", "target": "दो"}
    rows[142] = {"input": f"{PASSAGE} उसने कब कहा?", "target": "911"}
    rows[143] = {"input": "11. वह राजा था ।:133–134:38-1 वह कौन था?", "target": "वह राजा"}
    return {"examples": rows}


def write(directory: Path, english: object, hindi: object) -> str:
    (directory / "squad_dev.json").write_text(json.dumps(english), encoding="utf-8")
    (directory / "hindi_question_answering.json").write_text(json.dumps(hindi), encoding="utf-8")
    return str(directory)


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return write(tmp_path, english_file(), hindi_file())


def test_english_has_all_questions_and_each_answer_once_where_it_stands(directory: str) -> None:
    rows = {row.id: row for row in TASK.read(directory, "en", "all")}
    assert list(rows)[:2] == ["Normans-0-0", "Normans-1-0"] and len(rows) == 14
    when, what = rows["Normans-4-0"], rows["Normans-8-0"]
    assert when.fields == {"context": "Rollo came from the north in 911.", "question": "When?"}
    assert [(answer.text, answer.start) for answer in when.answers] == [("911", 29)]
    assert [(answer.text, answer.start) for answer in what.answers] == [("two towns", 34), ("two", 34), ("Two", 45)]
    assert "Elsewhere-0-0" in rows


def test_hindi_rows_meet_their_english_and_are_taken_apart(directory: str) -> None:
    rows = {row.id: row for row in TASK.read(directory, "hi", "all")}
    assert list(rows) == ["Normans-4-0", "Normans-8-0", "Normans-8-1", "Normans-11-0"]
    assert all(rows[name].fields["context"] == PASSAGE for name in ("Normans-8-0", "Normans-8-1"))
    assert rows["Normans-8-0"].fields["question"] == "उसने क्या लिया?"
    assert rows["Normans-8-1"].answers[0].start == PASSAGE.index("911")
    assert rows["Normans-11-0"].fields == {"context": "11. वह राजा था ।:133–134:38-1", "question": "वह कौन था?"}


def test_a_lone_question_with_marks_inside_and_a_byte_order_mark(directory: str) -> None:
    (row, *_) = TASK.read(directory, "hi", "all")
    assert row.fields == {"context": 'रोलो 911 में आया। वह उत्तर से आया। "', "question": "कब, दिन में या रात में?"}
    assert row.answers[0].start == 5


def test_an_answer_that_occurs_twice_is_found_where_the_english_one_stands(directory: str, tmp_path: Path) -> None:
    first = {row.id: row for row in TASK.read(directory, "hi", "all")}["Normans-8-0"]
    assert PASSAGE.count("दो") == 2 and first.answers[0].start == PASSAGE.index("दो")
    english = english_file()
    english["data"][0]["paragraphs"][8]["qas"][0]["answers"] = [{"text": "Two more", "answer_start": 45}]
    write(tmp_path, english, hindi_file())
    second = {row.id: row for row in TASK.read(directory, "hi", "all")}["Normans-8-0"]
    assert second.answers[0].start == PASSAGE.rindex("दो")


def test_the_sides_meet_and_rows_without_hindi_are_counted(directory: str) -> None:
    config = TaskConfig(name="squad_hi", data_dir=directory, target_language="hi")
    data = load_parallel(TASK, config)
    pairs = [row for rows in data.splits.values() for row in rows]
    assert sorted(row.id for row in pairs) == ["Normans-11-0", "Normans-4-0", "Normans-8-0", "Normans-8-1"]
    assert data.counts["rows_read"] == 14 and data.counts["dropped_not_in_a_language"] == 10
    towns = next(row for row in pairs if row.id == "Normans-8-0")
    assert towns.sources[0].fields["question"] == "What did he take?"
    assert (towns.sources[0].answers[0].text, towns.target.answers[0].text) == ("two towns", "दो")


def test_the_benchmark_tells_pairs_from_shifted_ones(directory: str) -> None:
    found = run_benchmark("squad_hi.py", directory)
    assert (found["paragraphs"], found["pairs"]) == (3, 4)
    # The last passage cites pages in Hindi only; the first two have one and the same number.
    assert found["passages"] == {"aligned": {"of": 3, "share": 0.6667}, "next_paragraph": {"of": 3, "share": 0.3333}}
    assert found["questions"] == {"aligned": {"of": 2, "share": 1.0}, "next_question": {"of": 1, "share": 0.0}}
    assert found["answers_found_in_passage"] == {"of": 4, "share": 1.0}


def test_prompt_is_that_of_tydiqa() -> None:
    fields = {"context": "A {b}.", "question": "C?"}
    assert TASK.prompt(fields) == TASKS.get("tydiqa").prompt(fields) == "Context: A {b}.\nQuestion: C?\nAnswer:"
    assert TASK.free_answers and TASK.metric == "exact_match"


def test_no_hindi_row_belongs_to_two_paragraphs() -> None:
    firsts = sorted(
        (row, article, paragraph) for article, rows in FIRST_ROWS.items() for paragraph, row in rows.items()
    )
    assert len(firsts) == 230 and len({row for row, _, _ in firsts}) == 230
    for (_, article, paragraph), (_, next_article, next_paragraph) in pairwise(firsts):
        assert article != next_article or paragraph < next_paragraph, "XQuAD keeps SQuAD's order"
    blocks = [article for (_, before, _), (_, article, _) in pairwise(firsts) if article != before]
    assert len(blocks) == len(set(blocks)) == 47, "an article's paragraphs lie together"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("data", 0), "x", "article 0 of .* is not an object"),
        (("data", 0, "title"), None, "article 0 of .* has title=None, not a text"),
        (("data", 0, "paragraphs"), [], r"has paragraphs=\[\], not a list of objects"),
        (("data", 0, "paragraphs", 4), 7, "paragraph 4 of Normans in .* is not an object"),
        (("data", 0, "paragraphs", 4, "context"), 7, "paragraph 4 of Normans in .* has context=7"),
        (("data", 0, "paragraphs", 4, "qas"), None, "has qas=None"),
        (("data", 0, "paragraphs", 4, "qas", 0, "question"), None, "question Normans-4-0 of .* has question=None"),
        (("data", 0, "paragraphs", 4, "qas", 0, "answers"), [], "question Normans-4-0 of .* has answers="),
    ],
)
def test_malformed_english_is_named(tmp_path: Path, path: Sequence[str | int], value: object, said: str) -> None:
    english = english_file()
    place = english
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(DataError, match=said):
        list(TASK.read(write(tmp_path, english, hindi_file()), "en", "all"))


@pytest.mark.parametrize(
    ("row", "example", "said"),
    [
        (141, {"input": None, "target": "x"}, "row 141 of .* has input=None, not a text"),
        (142, {"input": f"{PASSAGE} कब?", "target": 3}, "row 142 of .* has target=3, not a text"),
        (142, {"input": "और कुछ। कौन?", "target": "और"}, "rows 141 to 142 of .* do not begin with one passage"),
        (7, "text", "row 7 of .* is not an object"),
    ],
)
def test_malformed_hindi_is_named(tmp_path: Path, row: int, example: object, said: str) -> None:
    hindi = hindi_file()
    hindi["examples"][row] = example
    with pytest.raises(DataError, match=said):
        list(TASK.read(write(tmp_path, english_file(), hindi), "hi", "all"))


def test_a_hindi_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    hindi = {"examples": hindi_file()["examples"][:142]}
    with pytest.raises(DataError, match=r"rows 141 to 142 of .*[\s\S]*flare-ds fetch data squad_hi"):
        list(TASK.read(write(tmp_path, english_file(), hindi), "hi", "all"))


def test_a_language_it_lacks_and_files_that_are_not_there(directory: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no language 'hin'"):
        TASK.read(directory, "hin", "all")
    (tmp_path / "hindi_question_answering.json").unlink()
    with pytest.raises(DataError, match=r"hindi_question_answering\.json[\s\S]*flare-ds fetch data squad_hi"):
        TASK.read(directory, "hi", "all")
