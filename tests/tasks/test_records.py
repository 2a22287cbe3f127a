"""What is refused while a table is read: each time the row, the column and the file are named."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Value

from flare_ds.exceptions import DataError
from flare_ds.tasks import NUSAX, TYDIQA, TableTask
from flare_ds.tasks.bigbench import as_record
from flare_ds.tasks.cells import read_answers
from flare_ds.tasks.records import Record
from tests.tasks.tables import write_table

NAN = float("nan")
GOOD = {"id": "1", "text": "fine", "label": 0}
TASK = TableTask(
    name="mine",
    languages=("en", "de"),
    pools=("train", "test"),
    fields=("text",),
    labels=("no", "yes"),
    template="{text}\nAnswer:",
)


def read(task: TableTask, directory: Path, language: str = "en") -> list:
    return list(task.read(str(directory), language, "train"))


def write_lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": 3}, "label=3, not one of negative, neutral, positive, 0, 1, 2"),
        ({"label": -1}, "label=-1, not one of"),
        ({"label": NAN}, "label=nan, not one of"),
        ({"label": 0.5}, "label=0.5, not one of"),
        ({"label": None}, "label=None, not one of"),
        ({"label": True}, "label=True, not one of"),
        ({"label": "good"}, "label='good', not one of"),
        ({"label": [0]}, r"label=\[0\], not one of"),
        ({"text": None}, "text=None, not a text"),
        ({"text": NAN}, "text=nan, not a text"),
        ({"text": 5}, "text=5, not a text"),
        ({"text": ["a"]}, r"text=\['a'\], not a text"),
        ({"text": "\ud800"}, "text=.*not valid Unicode"),
        ({"id": None}, "id=None, not an id"),
        ({"id": ""}, "id='', not an id"),
        ({"id": 1.5}, "id=1.5, not an id"),
    ],
)
def test_a_cell_that_means_nothing_is_refused_by_row_column_and_file(tmp_path: Path, change: dict, said: str) -> None:
    path = write_lines(tmp_path / "eng/train.jsonl", GOOD, *[GOOD] * 2000, GOOD | change)
    with pytest.raises(DataError, match=f"row 2001 of {path} has {said}"):
        read(NUSAX, tmp_path)


@pytest.mark.parametrize(
    "answers",
    [
        None,
        {},
        "not JSON",
        {"text": [], "answer_start": []},
        {"text": ["a", "b"], "answer_start": [0]},
        {"text": [None], "answer_start": [0]},
        {"text": [""], "answer_start": [0]},
        {"text": ["a"], "answer_start": ["0"]},
        {"text": ["a"], "answer_start": [None]},
        [{"text": "a"}],
        [],
    ],
)
def test_answers_that_are_none_are_refused(tmp_path: Path, answers: object) -> None:
    row = {"id": "english-1", "context": "a b", "question": "?", "answers": answers}
    path = write_lines(tmp_path / "train.jsonl", row)
    with pytest.raises(DataError, match=f"row 0 of {path} has answers="):
        read(TYDIQA, tmp_path)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json", "csv"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / f"eng/train.{suffix}", [{"id": "1", "sentence": "a", "label": 0}])
    with pytest.raises(DataError, match=rf"row 0 of {path} has no column 'text' \(it has: id, sentence, label\)"):
        read(NUSAX, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "problem", "fix"),
    [
        ("train.csv", "text;label\na, b;0\n", "train.csv begins with 'text;label'", "write commas between its cells"),
        ("train.csv", "a;text, b;label\n1;2;0\n", "begins with 'a;text, b;label'", "write commas"),
        ("train.csv", "text\tlabel\na\t0\n", r"begins with 'text.*label'", "write commas"),
        ("train.csv", "sep=,\ntext,label\na,0\n", "begins with 'sep=,'", "the columns' names in its first line"),
        ("train.csv", "sep=;\ntext;label\na;0\n", "begins with 'sep=;'", "write commas"),
        ("train.json", '{"text": "a"}\n{"text": "b"}\n', "line 2", "call it train.jsonl"),
        ("train.tsv", "text\tlabel\na\t0\n", "found no .*, but .*/en/train.tsv", "write it as train.csv, with commas"),
        ("train.xlsx", "PK", "but .*/en/train.xlsx", "write it as train.csv"),
        ("train.csv", "text\na\n", r"no column 'label' \(it has: text\)", "id_column, label_column and answers_column"),
        ("train.csv", "text,label\na,\n", "label='', not one of", "comes without labels, set the task's pools"),
        ("train.csv", "text,label\na,-1\n", "label='-1', not one of", "comes without labels"),
        ("train.jsonl", '{"text": "a", "label": -1}', "label=-1, not one of", "comes without labels"),
        ("train.jsonl", '{"text": "a", "label": null}', "label=None, not one of", "comes without labels"),
    ],
)
def test_a_table_in_another_form_is_told_how_to_be_written(
    tmp_path: Path, name: str, content: str, problem: str, fix: str
) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"{problem}[\s\S]*\n  fix: .*{fix}"):
        read(TASK, tmp_path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_table_in_utf_16_is_told_to_be_saved_as_utf_8(tmp_path: Path, suffix: str, encoding: str) -> None:
    (tmp_path / "en").mkdir()
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / f"en/train.{suffix}").write_text(f"{mark}text,label\n", encoding=encoding)
    with pytest.raises(DataError, match=rf"train.{suffix} is UTF-16\n  fix: save it as UTF-8"):
        read(TASK, tmp_path)


@pytest.mark.parametrize("name", ["text;note", "sep=text"])
def test_a_column_may_be_called_anything(tmp_path: Path, name: str) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en/train.csv").write_text(f"{name},label\na,yes\n")
    assert [row.label for row in read(replace(TASK, columns={"text": name}), tmp_path)] == [1]


def test_a_validation_part_that_is_not_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test", "validation"):
        write_lines(tmp_path / f"en/{split}.jsonl", {"text": "a", "label": 0})
    told = f"{tmp_path}/en/validation.jsonl is not read: task mine has pools=['train', 'test']"
    for task, warns in (
        (TASK, True),
        (replace(TASK, pools=("train", "validation", "test")), False),
        (replace(TASK, splits={"test": "validation"}), False),
    ):
        read(task, tmp_path)
        assert (told in capsys.readouterr().err) == warns


def test_ids_that_nobody_reads_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows by their number would be other pairs, with the same labels where both tables are sorted by label."""
    for suffix in ("csv", "parquet", "jsonl"):
        directory = tmp_path / suffix
        for split in ("train", "test"):
            write_table(directory / f"en/{split}.{suffix}", [{"id": f"{split}-7", "text": "a", "label": 0}])
        for task, warns in (
            (TASK, True),
            (replace(TASK, id_column="id"), False),
            (replace(TASK, parallel=False), False),
        ):
            read(task, directory)
            assert capsys.readouterr().err.count("has a column 'id' that is not read") == warns, suffix


def test_only_who_has_fetched_a_row_is_told_to_delete_it(tmp_path: Path) -> None:
    """A table of one's own may be the only one there is."""
    write_lines(tmp_path / "en/train.jsonl", {"text": 5, "label": 0})
    with pytest.raises(DataError, match=r"text=5, not a text\n  fix: correct or remove that row$"):
        read(TASK, tmp_path)
    (tmp_path / "en/train.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"cannot be read: .*\n  fix: correct the file$"):
        read(TASK, tmp_path)
    (tmp_path / "en/train.jsonl").write_text("")
    with pytest.raises(DataError, match=r"holds no row of language 'en'\n  fix: write its rows there$"):
        read(TASK, tmp_path)
    with pytest.raises(DataError, match=r"correct or remove that row, or delete the directory of the data"):
        as_record({"text": 5}, "row 0 of a fetched file").text("text")


def test_nulls_and_nan_in_typed_columns_are_refused_too(tmp_path: Path) -> None:
    for column, values in (("text", ["a", None]), ("label", [0, None]), ("label", [0.0, NAN])):
        table = {"id": ["1", "2"], "text": ["a", "b"], "label": [0, 1]} | {column: values}
        (tmp_path / "eng").mkdir(exist_ok=True)
        pa.parquet.write_table(pa.table(table), tmp_path / "eng/train.parquet")
        with pytest.raises(DataError, match=f"row 1 of .*train.parquet has {column}="):
            read(NUSAX, tmp_path)


def test_floats_that_are_whole_are_labels(tmp_path: Path) -> None:
    write_lines(tmp_path / "eng/train.jsonl", GOOD | {"label": 2.0})
    assert [row.label for row in read(NUSAX, tmp_path)] == [2]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.jsonl", '{"text": "a", "label": 0}\n{"text": \n', "row 1 of .* cannot be read: "),
        ("train.jsonl", "[1]\n", "row 0 of .* is not an object with columns"),
        ("train.json", '{"data": []}', "holds dict, not an array of rows"),
        ("train.json", "[", "cannot be read"),
        ("train.csv", 'text,label\na,0\n"b', "row 1 of .* cannot be read"),
        ("train.csv", 'text,label\n"a"b,0\n', "row 0 of .* cannot be read"),
        ("train.csv", "text,label\na,0\nb\n", "row 1 of .* number of cells differs"),
        ("train.csv", "text,label\na,0,1\n", "row 0 of .* number of cells differs"),
        ("train.csv", "text,label,text\na,0,b\n", "row 0 of .* cannot be read: it has 'text' twice"),
        ("train.jsonl", '{"text": "a", "label": 0, "text": "b"}\n', "row 0 of .* cannot be read: it has 'text' twice"),
        ("train.json", '[{"text": "a", "label": 0, "label": 1}]', "row 0 of .* cannot be read: it has 'label' twice"),
        ("train.csv", "text,label\n", "holds no row of language 'en'"),
        ("train.parquet", "PAR1 not really", "is not a parquet file"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said) as caught:
        read(TASK, tmp_path)
    assert str(tmp_path / "en" / name) in caught.value.problem


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    path = write_table(tmp_path / "en/train.parquet", [{"text": "a" * 99, "label": 0}])
    content = path.read_bytes()
    for size in (0, 3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=re.escape(str(path))):
            read(TASK, tmp_path)
    path.write_bytes(content[:8] + b"\xff" * 60 + content[68:])
    with pytest.raises(DataError, match=f"row 0 of {path} cannot be read"):
        read(TASK, tmp_path)


def test_missing_files_are_listed_with_what_to_do(tmp_path: Path) -> None:
    looked = re.escape(f"{tmp_path}/en/train.{{parquet,jsonl,json,csv}}")
    with pytest.raises(DataError, match=rf"found no {looked}\n  fix: put the table there, check task\.data_dir"):
        read(TASK, tmp_path)
    two = f"{tmp_path}/secondary_task/train.{{parquet,jsonl,json,csv}} or {tmp_path}/train.{{"
    with pytest.raises(DataError, match=re.escape(two)):
        read(TYDIQA, tmp_path)


def test_two_forms_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train.jsonl", "train.csv"):
        write_table(tmp_path / "en" / name, [{"text": "a", "label": 0}])
    with pytest.raises(DataError, match=r"both .*train\.jsonl and .*train\.csv hold the split 'train'.*\n.*keep one"):
        read(TASK, tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002", "train-00001-of-00002"),
        ("train-00000-of-00002-a09b74b3ef9c3b56", "train-00001-of-00002-0b9b74b3ef9c3b57"),
        ("train/0000", "train/0001"),
        ("train/new", "train/old"),
        ("train/part9", "train/part10"),
        ("train/9", "train/10"),
        ("train/2024-9-1", "train/2024-10-1"),
    ],
)
def test_shards_are_one_table_in_their_order(tmp_path: Path, names: tuple[str, str]) -> None:
    for name, texts in zip(reversed(names), (("c",), ("a", "b")), strict=True):
        write_table(tmp_path / f"en/{name}.parquet", [{"text": text, "label": 0} for text in texts])
    assert [(row.id, row.fields["text"]) for row in read(TASK, tmp_path)] == [
        ("train-0", "a"),
        ("train-1", "b"),
        ("train-2", "c"),
    ]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (["00000-of-00002"], "en lacks 1 of 2 shards: train-00001-of-00002.csv"),
        (["00005-of-00006"], "lacks 5 of 6 shards: train-00000-of-00006.csv, .*, train-00002-of-00006.csv, ..."),
        (["00001-of-00002-a09b74b3ef9c3b56"], "en lacks 1 of 2 shards: train-00000-of-00002.csv"),
        (["0-of-3", "2-of-3"], "en lacks 1 of 3 shards: train-1-of-3.csv"),
        (
            ["01-of-12", "12-of-12"],
            "lacks 10 of 12 shards: train-02-of-12.csv, train-03-of-12.csv, train-04-of-12.csv, ...",
        ),
        (["2-of-2"], "en lacks 1 of 2 shards: train-1-of-2.csv"),
        (["00000-of-00001", "00000-of-00002"], r"en holds train-\*-of-00001.csv and train-\*-of-00002.csv"),
    ],
)
@pytest.mark.parametrize("folder", ["en", "en/train"])
def test_shards_that_are_not_all_there_are_refused(tmp_path: Path, folder: str, numbers: list[str], said: str) -> None:
    for number in numbers:
        write_table(tmp_path / folder / f"train-{number}.csv", [{"text": "a", "label": 0}])
    with pytest.raises(DataError, match=said.replace("en ", f"{folder} ")):
        read(TASK, tmp_path)


def test_shards_of_two_downloads_are_not_one_table(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    for checksum in ("a09b74b3ef9c3b56", "b09b74b3ef9c3b56"):
        for number in range(2):
            (tmp_path / f"en/train-0000{number}-of-00002-{checksum}.csv").write_text("text,label\na,0\n")
    with pytest.raises(DataError, match=r"en holds train-00000-of-00002\.csv twice, with other checksums"):
        read(TASK, tmp_path)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("digits", [1, 2, 5])
def test_parts_are_counted_from_zero_or_one_in_any_digits(tmp_path: Path, first: int, digits: int) -> None:
    (tmp_path / "en/train").mkdir(parents=True)
    for number in range(first, first + 12):
        path = tmp_path / f"en/train/part-{number:0{digits}d}-of-{12:0{digits}d}.csv"
        path.write_text(f"text,label\n{number},0\n")
    assert [row.fields["text"] for row in read(TASK, tmp_path)] == [str(n) for n in range(first, first + 12)]


SWALLOWED = '5,"Great product,yes\n6,fine,yes\n7,ok,no\n9,size 5",no\n10,x,no\n'


@pytest.mark.parametrize(
    "table",
    [
        "id,text,label\n1,a,no\n" + SWALLOWED,
        "id,text,label\r\n1,a,no\r\n" + SWALLOWED.replace("\n", "\r\n"),
        'text,label\na,no\n"b,yes\nc,no\nd",no\n',
        'label,text\nno,a\nyes,"b\nyes,c\nno,d"\n',
        'text,label,more\na,no,\nb,yes,"c\nd,yes,e\nf,no,g"\n',
    ],
)
def test_a_quote_that_swallows_rows_is_named_by_its_row(tmp_path: Path, table: str) -> None:
    (tmp_path / "en").mkdir()
    path = tmp_path / "en/train.csv"
    path.write_text(table, encoding="utf-8", newline="")
    with pytest.raises(
        DataError, match=f"row 1 of {path} cannot be read: a quote that opens in it closes only rows later.*as .jsonl"
    ):
        read(TASK, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "Dear all,\nfine, yes\nbye",
        "Dear all, yes\nfine, yes\nbye",
        "x=f(a,b)\ny=g(c,d)\nreturn",
        "1,000\n2,000\nno more",
        "one,yes\ntwo",
        "a\n\nb",
        "one,yes\n\ntwo,yes\nbye",
    ],
)
def test_a_text_of_several_lines_with_commas_is_a_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en/train.csv").write_text(f'text,label\n"{text}",yes\n', encoding="utf-8")
    assert [row.fields["text"] for row in read(TASK, tmp_path)] == [text]


def test_a_key_that_nobody_reads_may_stand_twice(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en/train.jsonl").write_text('{"text": "a", "label": 0, "more": 1, "more": {"x": 1, "x": 2}}\n')
    assert len(read(TASK, tmp_path)) == 1


@pytest.mark.parametrize(
    "names", [("train-v1", "train-v2"), ("train-00000-of-00001", "train-old"), ("train-1", "train-2")]
)
def test_tables_whose_names_only_begin_alike_are_no_shards(tmp_path: Path, names: tuple[str, str]) -> None:
    write_table(tmp_path / f"en/{names[0]}.csv", [{"text": "a", "label": 0}])
    assert len(read(TASK, tmp_path)) == 1
    write_table(tmp_path / f"en/{names[1]}.csv", [{"text": "a", "label": 1}])
    with pytest.raises(DataError, match=rf"en holds {names[0]}.csv and {names[1]}.csv, which are no shards of 'train'"):
        read(TASK, tmp_path)


@pytest.mark.parametrize(("names", "labels"), [(["no", "yes"], [0, 1]), (["yes", "no"], [1, 0])])
def test_class_names_of_the_table_decide_what_its_integers_mean(tmp_path: Path, names: list, labels: list) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    write_table(tmp_path / "en/train.parquet", [{"text": "a", "label": 0}, {"text": "b", "label": 1}], features)
    assert [row.label for row in read(TASK, tmp_path)] == labels


def test_a_list_among_the_features_of_a_table_is_no_class(tmp_path: Path) -> None:
    """So earlier versions of the package datasets write a column of lists; nobody reads it here."""
    features = {"label": {"names": ["yes", "no"], "_type": "ClassLabel"}, "answers": [{"text": {"_type": "Value"}}]}
    rows = pa.table({"text": ["a", "b"], "label": [0, 1], "answers": [[], []]})
    write_table(tmp_path / "en/train.parquet", [{"text": "a", "label": 0}])  # makes the folder
    said = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(rows.replace_schema_metadata(said), tmp_path / "en/train.parquet")
    assert [row.label for row in read(TASK, tmp_path)] == [1, 0]


def test_label_values_add_to_the_label_words(tmp_path: Path) -> None:
    """A class that is called as a label word means it, and so does a cell; numbers mean what is declared alone."""
    values = {"bad": "no", 7: "yes"}
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "yes"])})
    write_table(tmp_path / "en/train.parquet", [{"text": "a", "label": 0}, {"text": "b", "label": 1}], features)
    assert [row.label for row in read(replace(TASK, label_values=values), tmp_path)] == [0, 1]
    cells = ["no", "bad", "7", "yes"]
    assert labels_in(tmp_path / "2", "csv", ["no", "yes"], cells, label_values=values) == [0, 0, 1, 1]
    with pytest.raises(DataError, match="not one of"):
        labels_in(tmp_path / "3", "jsonl", ["no", "yes"], [0], label_values=values)
    with pytest.raises(DataError, match="not one of"):
        labels_in(tmp_path / "4", "jsonl", ["1", "2"], [2], label_values={0: "1", 1: "2"})


def test_class_names_that_are_no_label_words_are_refused(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["wrong", "right"])})
    write_table(tmp_path / "en/train.parquet", [{"text": "a", "label": 0}], features)
    with pytest.raises(DataError, match=r"row 0 of .* has label=0 \(class 'wrong'\), not one of no, yes"):
        read(TASK, tmp_path)


def labels_in(directory: Path, suffix: str, words: list[str], cells: list, **declared: Any) -> list[int | None]:
    """The labels of a table with these cells."""
    task = replace(TASK, labels=tuple(words), **declared)
    write_table(directory / f"en/train.{suffix}", [{"text": "a", "label": cell} for cell in cells])
    return [row.label for row in read(task, directory)]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    ("words", "cells", "labels"),
    [
        (["no", "yes", "maybe"], [2, 0, 1], [2, 0, 1]),
        (["1", "2", "3", "4", "5"], [1, 5, 2], [0, 4, 1]),
        (["1", "0"], [1, 0], [0, 1]),
        (["0", "1", "2"], [2, 0], [2, 0]),
        (["-1", "0", "1"], [-1, 0, 1], [0, 1, 2]),
        (["0", "1", "more"], [0, 2], [0, 2]),
        (["1", "2"], [1.0, 2.0], [0, 1]),
        (["no", "yes"], [1.0, 0.0], [1, 0]),
        (["0.5", "1.5"], [0.5, 1.5], [0, 1]),
        (["false", "true"], [True, False], [1, 0]),
        (["True", "False"], [True, False], [0, 1]),
        (["1", "2"], ["1", "2"], [0, 1]),
        (["1.0", "0.0"], [1.0, 0.0], [0, 1]),
        (["1.0", "2.0", "3.0"], [1, 3, 2], [0, 2, 1]),
        (["0.5", "1.5", "1.0"], [1.0, 0.5], [2, 0]),
        (["0.0", "1.0"], [1.0, 0.0], [1, 0]),
        (["01", "02"], [1, 2], [0, 1]),
        (["n\u00e9gatif", "positif"], ["ne\u0301gatif", "positif"], [0, 1]),
        (["ne\u0301gatif", "positif"], ["n\u00e9gatif"], [0]),
    ],
)
def test_a_cell_means_what_is_seen_in_every_form(
    tmp_path: Path, suffix: str, words: list[str], cells: list, labels: list[int]
) -> None:
    assert labels_in(tmp_path, suffix, words, cells) == labels


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("cells", [[1], [0], [2.0]])
def test_a_number_that_may_be_a_word_or_a_place_is_refused(tmp_path: Path, suffix: str, cells: list) -> None:
    words = ["1", "2", "many"]
    with pytest.raises(DataError, match=r"may be a label word or the index of one\n  fix: .*label_values"):
        labels_in(tmp_path, suffix, words, cells)
    values = {0: "1", 1: "2", "2": "many"}
    assert labels_in(tmp_path, suffix, words, cells, label_values=values) == [int(cell) for cell in cells]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(("words", "cell"), [(["1", "2"], 0), (["1", "2"], 3), (["a", "b"], 2), (["a", "b"], True)])
def test_a_number_that_is_neither_is_refused_with_the_way_out(
    tmp_path: Path, suffix: str, words: list[str], cell: int
) -> None:
    with pytest.raises(DataError, match=rf"not one of {', '.join(words)}[\s\S]*label_values"):
        labels_in(tmp_path, suffix, words, [cell])


@pytest.mark.parametrize(
    "values", [{0: "yes", 1: "no"}, {"wrong": "yes", "right": "no"}, {"wrong": "yes", 1: "no"}, {"0": "yes", "1": "no"}]
)
def test_label_values_say_what_classes_mean_that_are_no_label_words(tmp_path: Path, values: dict) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["wrong", "right"])})
    write_table(tmp_path / "en/train.parquet", [{"text": "a", "label": 0}, {"text": "b", "label": 1}], features)
    assert [row.label for row in read(replace(TASK, label_values=values), tmp_path)] == [1, 0]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("values", [{True: "yes", False: "no"}, {"true": "yes", "false": "no"}])
def test_label_values_say_what_truth_values_mean(tmp_path: Path, suffix: str, values: dict) -> None:
    assert labels_in(tmp_path, suffix, ["no", "yes"], [True, False], label_values=values) == [1, 0]


@pytest.mark.parametrize("cell", [1, 1.0])
def test_a_number_that_two_label_words_say_is_refused(tmp_path: Path, cell: float) -> None:
    with pytest.raises(DataError, match="not one of"):
        labels_in(tmp_path, "jsonl", ["1", "1.0"], [cell])
    assert labels_in(tmp_path, "jsonl", ["1", "1.0"], ["1", "1.0"]) == [0, 1]


def test_classes_that_are_named_by_numbers_are_those_numbers(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["1", "2", "0"])})
    rows = [{"text": "a", "label": place} for place in range(3)]
    write_table(tmp_path / "en/train.parquet", rows, features)
    assert [row.label for row in read(replace(TASK, labels=("0", "1", "2")), tmp_path)] == [1, 2, 0]


@pytest.mark.parametrize(
    ("name", "content"), [("train.csv", "text,label\na,yes\n"), ("train.jsonl", '{"text": "a", "label": "yes"}\n\n')]
)
def test_a_byte_order_mark_and_a_blank_line_are_no_data(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / name).write_text(content, encoding="utf-8-sig")
    assert [(row.fields["text"], row.label) for row in read(TASK, tmp_path)] == [("a", 1)]


def test_rows_are_read_lazily(tmp_path: Path) -> None:
    write_lines(tmp_path / "en/train.jsonl", {"text": "a", "label": 0}, {"text": "b", "label": 9})
    rows = TASK.read(str(tmp_path), "en", "train")
    assert next(iter(rows)).fields == {"text": "a"}


def test_a_task_without_a_hub_asks_for_files() -> None:
    with pytest.raises(DataError, match=r"task mine is not on the hub[\s\S]*task\.data_dir"):
        TASK.read(None, "en", "train")


def test_unknown_language_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task mine has no language 'dee'.*\n.*did you mean 'de'"):
        TASK.read(str(tmp_path), "dee", "train")


def test_half_a_character_is_refused_in_ids_and_in_every_answer(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "eng/train.jsonl", GOOD, GOOD | {"id": "7\ud83d"})
    with pytest.raises(DataError, match=f"row 1 of {path} has id=.*valid Unicode"):
        read(NUSAX, tmp_path)
    for answers in (
        {"text": ["a", "a\udc00"], "answer_start": [0, 0]},
        json.dumps([{"text": "\ud83d", "answer_start": 0}]),
    ):
        with pytest.raises(DataError, match=r"row 3 has answers=.*, not answers in valid Unicode"):
            read_answers(Record("row 3", {"answers": answers}), "answers", "a text")


def test_columns_that_are_not_read_may_hold_anything(tmp_path: Path) -> None:
    wanted = [("a", 0), ("b", 1)]
    (tmp_path / "csv/en").mkdir(parents=True)
    long = b"x" * 200_000
    (tmp_path / "csv/en/train.csv").write_bytes(b"text,odd,label,odd\r\na,\xff\xfe,no,\r\nb," + long + b",yes,\r\n")
    (tmp_path / "jsonl/en").mkdir(parents=True)
    lines = [
        b'{"text": "a", "label": 0, "odd": ' + b"9" * 9000 + b"}",
        b'{"text": "b", "odd": "\xff\\ud83d", "label": 1}',
    ]
    (tmp_path / "jsonl/en/train.jsonl").write_bytes(b"\r\n".join(lines))
    (tmp_path / "parquet/en").mkdir(parents=True)
    odd = {
        "time": pa.array([2**62, 2**62], pa.timestamp("ms")),  # no datetime of Python's
        "map": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int8())),
        "raw": pa.array([b"\xff", None]),
    }
    table = pa.table({"text": ["a", "b"], "label": [0, 1], **odd})
    table = table.replace_schema_metadata({"huggingface": '{"info": {"features": {"raw": {"_type": "Hologram"}}}}'})
    pq.write_table(table, tmp_path / "parquet/en/train.parquet")
    for form in ("csv", "jsonl", "parquet"):
        assert [(row.fields["text"], row.label) for row in read(TASK, tmp_path / form)] == wanted, form
    with pytest.raises(DataError, match=r"row 0 of .* has no column 'text' \(it has: .*raw.*\)"):
        pq.write_table(table.rename_columns(["texts", "label", *odd]), tmp_path / "parquet/en/train.parquet")
        read(TASK, tmp_path / "parquet")


def test_a_long_cell_of_a_csv_is_read_and_bytes_that_are_no_text_are_refused_by_row(tmp_path: Path) -> None:
    long = "word " * 100_000
    (tmp_path / "en").mkdir()
    path = tmp_path / "en/train.csv"
    path.write_bytes(f"text,label\n{long},no\n".encode() + b"caf\xe9,yes\n")
    rows = TASK.read(str(tmp_path), "en", "train")
    assert next(rows).fields["text"] == long
    with pytest.raises(DataError, match=f"row 1 of {path} has text='caf.*, not valid Unicode"):
        next(rows)
