"""What a user gives to predict is read as the task's rows, or refused by file, row and column."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flare_ds.config import Config
from flare_ds.data.parallel import ParallelRow
from flare_ds.evaluation.given_rows import asked_rows, given_pair, read_rows
from flare_ds.exceptions import ConfigError, DataError
from flare_ds.methods import METHODS
from flare_ds.tasks.base import TASKS, Task


def config_of(method: str = "flare", *, task: str = "multiemo", **task_settings: object) -> Config:
    sections = {
        "model": {"base": "base"},
        "task": {"name": task, "target_language": "es", **task_settings},
        "source": {"mt_encoder": "nllb"},
        "train": {"steps": 1},
    }
    return Config.model_validate({"method": method, "run_dir": "run", "deepspeed": "ds.json", **sections})


def read(tmp_path: Path, text: str, config: Config, suffix: str = ".jsonl") -> list[ParallelRow]:
    path = (tmp_path / "rows").with_suffix(suffix)
    path.write_text(text, encoding="utf-8")
    return read_rows(config, task_for(config), path)


def task_for(config: Config) -> Task:
    return TASKS.get(config.task.name)


def texts(row: ParallelRow) -> tuple[str, Mapping[str, str], list[Mapping[str, str] | None]]:
    return row.id, row.target.fields, [side and side.fields for side in row.sources]


def test_rows_of_one_field(tmp_path: Path) -> None:
    lines = ['{"id": 7, "target": "a", "source": "b", "more": 1}', '{"target": {"text": "c"}, "source": null}']
    rows = read(tmp_path, "\n".join(lines), config_of())
    assert [texts(row) for row in rows] == [("7", {"text": "a"}, [{"text": "b"}]), ("1", {"text": "c"}, [None])]
    rows = read(tmp_path, "id,target,source\nx,NA,\n", config_of(), ".csv")
    assert [texts(row) for row in rows] == [("x", {"text": "NA"}, [None])]


def test_rows_of_several_sources(tmp_path: Path) -> None:
    config = config_of(extra_source_languages=["de"])
    lines = ['{"target": "a", "source": ["b", "c"]}', '{"target": "a", "source": ["b", null]}', '{"target": "a"}']
    sources = [texts(row)[2] for row in read(tmp_path, "\n".join(lines), config)]
    assert sources == [[{"text": "b"}, {"text": "c"}], [{"text": "b"}, None], [None, None]]
    rows = read(tmp_path, 'target,source\na,"[""b"", ""null""]"\n', config, ".csv")
    assert texts(rows[0])[2] == [{"text": "b"}, {"text": "null"}]
    rows = read(tmp_path, 'target,source\na,"[""5"", null]"\nb,"[5, nullify]"\n', config, ".csv")
    assert [texts(row)[2] for row in rows] == [[{"text": "5"}, None], [{"text": "5"}, {"text": "nullify"}]]


def test_rows_of_several_fields(tmp_path: Path) -> None:
    lines = '{"target": {"hypothesis": "h", "premise": ""}, "source": "{premise: 5, hypothesis: no}"}'
    (row,) = read(tmp_path, lines, config_of(task="xnli"))
    assert texts(row)[1:] == ({"premise": "", "hypothesis": "h"}, [{"premise": "5", "hypothesis": "no"}])
    assert list(row.target.fields) == ["premise", "hypothesis"], "as the task says them"


def test_letters_that_json_writes_in_two_halves_are_one(tmp_path: Path) -> None:
    """In a cell of a CSV, or on the command line, where `json.dumps` has written the fields."""
    config, said = config_of("lora", task="xnli"), {"premise": "fine \U0001f600", "hypothesis": "é"}
    (row,) = read(tmp_path, json.dumps({"target": json.dumps(said)}), config)
    assert row.target.fields == said
    with pytest.raises(DataError, match="target"):
        read(tmp_path, json.dumps({"target": '{"premise": "\\ud83d", "hypothesis": "b"}'}), config)


def test_a_method_reads_of_a_row_what_it_needs(tmp_path: Path) -> None:
    lines = '{"target": "a", "source": "b"}'
    read_by = {method: texts(read(tmp_path, lines, config_of(method))[0])[2] for method in METHODS}
    needed = {method for method, sources in read_by.items() if sources}
    assert needed == set(METHODS) - {"zero_shot", "lora", "flare_mt"}
    (row,) = read(tmp_path, '{"source": "b"}', config_of("translate_test"))
    assert texts(row) == ("0", {"text": "b"}, [{"text": "b"}])


def test_a_blank_line_of_a_csv_with_one_column_is_an_empty_cell(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 of .*rows\.csv has no text in column target"):
        read(tmp_path, "target\nfirst\n\nthird\n", config_of("lora"), ".csv")
    rows = read(tmp_path, "target,source\nfirst,a\n\nsecond,\n", config_of(), ".csv")
    assert [texts(row)[:2] for row in rows] == [("0", {"text": "first"}), ("1", {"text": "second"})]


@pytest.mark.parametrize(
    ("method", "line", "told"),
    [
        ("flare", '{"source": "b"}', "has no text in column target"),
        ("flare", '{"target": " ", "source": "b"}', "has no text in column target"),
        ("translate_test", '{"id": 3}', "has no text in column target or source"),
        ("flare", '{"target": 5}', "has target=5, not TEXT"),
        ("flare", '{"target": {"txt": "a"}}', "has target={'txt': 'a'}, not TEXT"),
        ("flare", '{"target": "a", "source": ["b", "c"]}', "not a list with a text for each of: en"),
        ("flare", '{"target": "\\ud800"}', "has target='\\ud800', not TEXT"),
        ("flare", '{"target": "a", "id": null}', "has id=None, not an id"),
        ("flare", '["a"]', "is not an object with columns"),
        ("flare", '{"target": "a"', "cannot be read"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, method: str, line: str, told: str) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, '{"target": "a", "source": "b"}\n' + line, config_of(method))
    message = str(error.value)
    assert message.startswith(f"row 1 of {tmp_path}/rows.jsonl ") and told in message and "\n  fix: " in message


@pytest.mark.parametrize(
    ("text", "has"),
    [("id,Target\n1,first\n", "id, Target"), ("id,source\n1,a\n", "id, source")],
)
def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path, text: str, has: str) -> None:
    told = rf"row 0 of .* has no text in column target \(it has: {has}\)\n  fix: rename the column to that$"
    with pytest.raises(DataError, match=told):
        read(tmp_path, text, config_of(), ".csv")


def test_a_file_with_other_marks_between_its_cells_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"begins with 'id;target'.*\n  fix: write commas between its cells"):
        read(tmp_path, "id;target\n1;first\n", config_of(), ".csv")


@pytest.mark.parametrize(
    ("text", "suffix"), [('{"target": 5}', ".jsonl"), ('{"target": ', ".jsonl"), ("nothing", ".parquet")]
)
def test_a_file_of_the_users_own_is_not_to_be_fetched_again(tmp_path: Path, text: str, suffix: str) -> None:
    with pytest.raises(DataError, match=r"\n  fix: (correct|write)") as error:
        read(tmp_path, text, config_of(), suffix)
    assert "fetch" not in error.value.fix


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl has no rows"):
        read(tmp_path, "", config_of())
    with pytest.raises(DataError, match=r"rows\.txt is no file that ends in \.parquet or \.jsonl"):
        read(tmp_path, "a", config_of(), ".txt")
    with pytest.raises(DataError, match=r"nowhere\.csv is no file"):
        read_rows(config_of(), task_for(config_of()), tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("config", "target", "sources", "told"),
    [
        (config_of(extra_source_languages=["de"]), "a", ["b"], r"a source text for each of: en, de; got \['b'\]"),
        (config_of("translate_test"), "a", [], r"a source text for each of: en; got \[\]"),
        (config_of(), None, ["b"], "method=flare reads the target text"),
        (config_of("lora"), " ", [], "--target is empty"),
        (config_of("flare"), "a", ["\n"], "--source is empty"),
        (config_of("lora", task="xnli"), "a", [], "does not give premise and hypothesis of task xnli"),
        (config_of("lora", task="xnli"), "{premise: a}", [], "does not give premise and hypothesis"),
    ],
)
def test_what_a_pair_lacks_is_said(config: Config, target: str | None, sources: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        given_pair(config, task_for(config), target=target, sources=sources)


def asked(config: Config, target: object = None, source: object = None) -> list[tuple]:
    return [texts(row)[1:] for row in asked_rows(config, task_for(config), target, source)]


def test_python_asks_of_one_text_or_of_many() -> None:
    one = [({"text": "a"}, [{"text": "b"}])]
    assert asked(config_of(), "a", "b") == asked(config_of(), ["a"], ("b",)) == one
    assert asked(config_of(), ["a", "c"], ["b", None]) == [*one, ({"text": "c"}, [None])]
    assert asked(config_of(), ["a", "c"]) == [({"text": "a"}, [None]), ({"text": "c"}, [None])]
    assert asked(config_of("lora"), "a", "b") == asked(config_of("flare_mt"), "a") == [({"text": "a"}, [])]
    assert asked(config_of("translate_test"), source=["b"]) == [({"text": "b"}, [{"text": "b"}])]
    assert asked(config_of(), []) == []
    assert asked(config_of(), (text for text in "ac"), iter(["b", None])) == asked(config_of(), ["a", "c"], ["b", None])
    assert asked(config_of(), np.array(["a"])) == [({"text": "a"}, [None])]


def test_python_asks_with_several_sources_and_of_several_fields() -> None:
    config = config_of(extra_source_languages=["de"])
    expected = [({"text": "a"}, [{"text": "b"}, None])]
    assert asked(config, "a", ["b", None]) == asked(config, ["a"], [["b", ""]]) == expected
    assert asked(config, ["a"]) == [({"text": "a"}, [None, None])]
    fields = {"hypothesis": "h", "premise": "p"}
    ((target, _),) = asked(config_of(task="xnli"), fields)
    assert list(target.items()) == [("premise", "p"), ("hypothesis", "h")]


@pytest.mark.parametrize(
    ("method", "target", "source", "problem"),
    [
        ("flare", None, "b", "was given no text to read"),
        ("translate_test", None, None, "was given no text to read"),
        ("flare", ["a"], "b", "target is a list, but source a single text"),
        ("flare", ["a", "b"], ["c"], "2 texts in target, but 1 in source"),
        ("flare", ["a", " "], None, r"target\[1\] holds no text"),
        ("flare", ["a", {"txt": "b"}], None, r"target\[1\]=\{'txt': 'b'\} is no text of task multiemo"),
        ("flare", 5, None, "target=5 is neither a text nor a list of texts"),
        ("flare", ["a"], 5, "source=5 is neither a text nor a list of texts"),
        ("flare", "a", 5, r"source\[0\]=5 is no text of task multiemo"),
        ("translate_test", None, ["b", ""], r"target\[1\] holds no text"),
        ("lora", pd.DataFrame({"text": ["a"], "label": [1]}), None, r"target is a DataFrame.*\n  fix: .*\['text'\]"),
        ("flare", ["a"], pd.DataFrame({"text": ["b"]}), r"source is a DataFrame.*\n  fix: .*\['text'\]"),
    ],
)
def test_what_python_cannot_ask_is_named(method: str, target: object, source: object, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        asked(config_of(method), target, source)


@pytest.mark.parametrize("source", ["b", ["b"], ["b", "c", "d"]])
def test_a_text_for_each_source_language_is_wanted(source: object) -> None:
    with pytest.raises(ConfigError, match=r"source\[0\]=.* does not have one text per language"):
        asked(config_of(extra_source_languages=["de"]), "a", source)
