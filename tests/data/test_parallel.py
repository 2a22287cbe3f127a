"""Parallel rows: the split against a slow independent one, leaks, caps, gaps and misaligned sides."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare_ds.config import TaskConfig
from flare_ds.data.digests import normalise
from flare_ds.data.parallel import ParallelData, ParallelRow, Side, load_parallel, translation_jobs
from flare_ds.exceptions import DataError
from flare_ds.tasks import Row, TableTask, Task
from flare_ds.tasks.base import Pool
from tests.tasks.tables import write_table


class Memory(Task):
    """A task whose texts are given; row i has label i % 2, and `gaps` are the rows a language lacks by design."""

    name = "memory"
    version = 1
    languages = ("xx", "en", "de", "pl")
    original_language = "xx"
    labels = ("no", "yes")

    def __init__(self, texts: Mapping[str, list[str]]) -> None:
        self.rows = {
            language: [Row(f"r-{i}", {"text": text}, i % 2) for i, text in enumerate(side)]
            for language, side in texts.items()
        }
        self.gaps: set[tuple[str, str]] = set()

    def read(self, data_dir: str | None, language: str, pool: Pool) -> list[Row]:
        self.check_language(language)
        return self.rows[language]

    def prompt(self, fields: Mapping[str, str]) -> str:
        return " ".join(fields.values())

    def covers(self, row_id: str, language: str) -> bool:
        return (row_id, language) not in self.gaps


def texts(prefix: str, number: int = 400) -> list[str]:
    return [f"{prefix} sentence {i}" for i in range(number)]


def plain() -> Memory:
    return Memory({"xx": texts("x"), "en": texts("e"), "de": texts("d"), "pl": texts("p")})


def load(task: Task, source: str = "en", target: str = "pl", **settings: object) -> ParallelData:
    languages = {"source_language": source, "target_language": target}
    return load_parallel(
        task, TaskConfig.model_validate({"name": "memory", "data_dir": "unused", **languages, **settings})
    )


def ids(data: ParallelData, split: str) -> list[str]:
    return [row.id for row in data.splits[split]]


def contents(data: ParallelData) -> dict[str, list[ParallelRow]]:
    return {split: list(rows) for split, rows in data.splits.items()}


def only_source(row: ParallelRow) -> Mapping[str, str]:
    (side,) = row.sources
    assert side is not None
    return side.fields


def share(text: str) -> float:
    """Where the hash of an original text lies between 0 and 1: the oracle of the split."""
    digits = hashlib.sha256(text.lower().encode("utf-8")).hexdigest()
    return int(digits, 16) / 16**64


def test_split_and_order_follow_the_hash_of_the_original_text() -> None:
    data = load(plain())
    ranked = sorted((share(f"x sentence {i}"), f"r-{i}") for i in range(400))
    assert ids(data, "test") == [name for at, name in ranked if at < 0.10]
    assert ids(data, "validation") == [name for at, name in ranked if 0.10 <= at < 0.15]
    assert ids(data, "train") == [name for at, name in ranked if at >= 0.15]
    assert data.counts["rows_read"] == 400
    assert not any(number for name, number in data.counts.items() if name.startswith("dropped"))


def test_every_language_pair_has_the_same_split() -> None:
    pairs = [("en", "pl"), ("pl", "en"), ("en", "en"), ("en", "xx"), ("xx", "pl")]
    splits = [{name: ids(load(plain(), *pair), name) for name in ("train", "validation", "test")} for pair in pairs]
    assert all(split == splits[0] for split in splits)


def test_every_language_pair_has_the_same_split_though_no_language_is_the_original() -> None:
    task = plain()
    task.original_language = None
    pairs = [("xx", "pl"), ("pl", "xx"), ("en", "pl"), ("pl", "pl"), ("xx", "xx")]
    splits = [{name: ids(load(task, *pair), name) for name in ("train", "validation", "test")} for pair in pairs]
    assert all(split == splits[0] for split in splits)


def test_it_is_said_why_a_language_is_read_that_no_config_names() -> None:
    class Lacking(Memory):
        original_language = None

        def read(self, data_dir: str | None, language: str, pool: Pool) -> list[Row]:
            if language == "xx":
                raise DataError("found no xx/all.csv", fix="put the table there")
            return super().read(data_dir, language, pool)

    why = "found no xx/all.csv (xx, the first language of task memory, decides which split a row is in)"
    with pytest.raises(DataError, match=rf"{re.escape(why)}\n.*there; or set the task's original_language to another"):
        load(Lacking({"en": texts("e"), "pl": texts("p")}))


def test_the_two_sides_of_a_row_belong_together() -> None:
    for row in load(plain()).splits["train"]:
        number = int(row.id.removeprefix("r-"))
        assert row.sources == (Side({"text": f"e sentence {number}"}),)
        assert row.target == Side({"text": f"p sentence {number}"})
        assert row.label == number % 2


def test_further_sources_stand_in_the_order_of_the_config_and_leave_the_split_alone() -> None:
    data = load(plain(), extra_source_languages=["xx", "de"])
    for row in data.splits["train"]:
        number = row.id.removeprefix("r-")
        assert row.sources == tuple(Side({"text": f"{prefix} sentence {number}"}) for prefix in "exd")
    assert {name: ids(data, name) for name in data.splits} == {name: ids(load(plain()), name) for name in data.splits}


def test_order_of_a_file_does_not_matter() -> None:
    shuffled = plain()
    shuffled.rows["pl"].reverse()
    assert contents(load(shuffled)) == contents(load(plain()))


def test_one_language_has_no_source() -> None:
    data = load(plain(), "en", "en")
    assert all(row.sources == () and row.target.fields["text"].startswith("e ") for row in data.splits["train"])


def test_caps_keep_the_first_rows_of_each_split() -> None:
    whole, capped = load(plain()), load(plain(), train_rows=7, validation_rows=3, test_rows=5)
    for split, number in (("train", 7), ("validation", 3), ("test", 5)):
        assert ids(capped, split) == ids(whole, split)[:number]


@pytest.mark.parametrize("side", ["en", "pl", "de"])
@pytest.mark.parametrize(("held_out", "exposed"), [("test", "train"), ("test", "validation"), ("validation", "train")])
def test_a_held_out_text_is_dropped_elsewhere_even_when_the_cap_drops_the_held_out_row(
    side: str, held_out: str, exposed: str
) -> None:
    task, extra = plain(), ["de"]
    before = load(task, extra_source_languages=extra)
    leaked, kept = ids(before, exposed)[0], ids(before, held_out)[-1]
    number = int(kept.removeprefix("r-"))
    label = int(leaked.removeprefix("r-"))
    task.rows[side][label] = Row(leaked, {"text": f"  {side[0].upper()}  SENTENCE\n{number} "}, label % 2)
    after = load(task, extra_source_languages=extra, **{f"{held_out}_rows": 1})
    assert ids(after, exposed) == ids(before, exposed)[1:]
    assert ids(after, held_out) == ids(before, held_out)[:1]
    assert after.counts[f"dropped_text_of_a_{held_out}_row"] == 1


@pytest.mark.parametrize("prefix", ["e", "d"])
def test_a_test_text_in_another_language_is_a_leak_too(prefix: str) -> None:
    task = plain()
    before = load(task)
    leaked, kept = ids(before, "train")[4], ids(before, "test")[2]
    number = int(leaked.removeprefix("r-"))
    task.rows["pl"][number] = Row(leaked, {"text": f"{prefix} sentence {kept.removeprefix('r-')}"}, number % 2)
    assert leaked not in ids(load(task, extra_source_languages=["de"]), "train")


@given(st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyzABCDE"), min_size=120, max_size=120))
def test_no_text_of_a_held_out_row_is_ever_trained_on(english: list[str]) -> None:
    data = load(Memory({"xx": texts("x", 120), "en": english, "pl": texts("p", 120)}))
    seen = {name: {only_source(row)["text"].lower() for row in rows} for name, rows in data.splits.items()}
    assert not seen["train"] & (seen["test"] | seen["validation"])
    assert not seen["validation"] & seen["test"]


def test_two_rows_with_one_original_text_share_a_split() -> None:
    task = Memory({"xx": ["Same  text", "same text "] * 40, "en": texts("e", 80), "pl": texts("p", 80)})
    data = load(task)
    assert sorted(len(rows) for rows in data.splits.values()) == [0, 0, 80]


def test_rows_with_an_empty_side_are_dropped_and_counted() -> None:
    task = plain()
    task.rows["pl"][3] = Row("r-3", {"text": " "}, 1)
    task.rows["xx"][4] = Row("r-4", {"text": ""}, 0)
    data = load(task)
    found = {row.id for rows in data.splits.values() for row in rows}
    assert found == {f"r-{i}" for i in range(400)} - {"r-3", "r-4"}
    assert data.counts["dropped_empty_text"] == 2


def test_documented_gaps_are_dropped_and_counted() -> None:
    task = plain()
    task.gaps = {("r-0", "pl"), ("r-1", "pl")}
    task.rows["pl"] = task.rows["pl"][2:]
    data = load(task)
    assert data.counts["dropped_not_in_a_language"] == 2
    assert sum(map(len, data.splits.values())) == 398


@pytest.mark.parametrize("language", ["pl", "de"])
def test_missing_row_is_named(language: str) -> None:
    task = plain()
    del task.rows[language][5]
    message = rf"the row with id 'r-5' is missing in language '{language}' \(399 rows in '{language}', 400 expected"
    with pytest.raises(DataError, match=message) as caught:
        load(task, extra_source_languages=["de"])
    assert "delete" not in caught.value.fix, "it may be the only copy"


def test_a_gap_is_mended_in_every_language_and_not_by_splitting_each_by_itself() -> None:
    task = plain()
    del task.rows["pl"][5]
    said = r"remove it from every language; .* `covers` .*\(parallel: false is only for rows that are not translations"
    with pytest.raises(DataError, match=said):
        load(task)


@pytest.mark.parametrize(
    ("german", "changes", "told"),
    [
        ("{}", {}, True),
        ("de-{}", {}, False),
        ("{}", {"parallel": True}, False),
        ("{}", {"id_column": None}, False),
        ("{}", {"pools": ("train", "test"), "splits": {"train": "all", "test": "all"}}, False),
    ],
)
def test_ids_that_recur_where_each_language_is_split_by_itself_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], german: str, changes: dict[str, Any], told: bool
) -> None:
    for language, name in (("en", "{}"), ("de", german)):
        rows = [{"id": name.format(i), "text": f"{language} text {i}", "label": i % 2} for i in range(400)]
        write_table(tmp_path / language / "all.csv", rows)
    kind = {"languages": ("en", "de"), "pools": ("all",), "fields": ("text",), "labels": ("no", "yes")}
    own = {"name": "own", "parallel": False, "id_column": "id", "template": "{text}:"}
    settings = {"name": "own", "target_language": "de", "data_dir": str(tmp_path), "sides": "translated"}
    translation_jobs(TableTask(**(kind | own | changes)), TaskConfig.model_validate(settings))
    assert ("test rows in 'de' have ids of train rows in 'en'" in capsys.readouterr().err) is told


def test_unexpected_row_is_named() -> None:
    task = plain()
    task.rows["en"].append(Row("r-999", {"text": "more"}, 0))
    with pytest.raises(DataError, match="the row with id 'r-999' is unexpected in language 'en'"):
        load(task)


def test_labels_that_differ_are_named() -> None:
    task = plain()
    task.rows["pl"][6] = Row("r-6", {"text": "p sentence 6"}, 1)
    with pytest.raises(DataError, match="the row with id 'r-6' has label 'yes' in 'pl' but 'no' in 'xx'"):
        load(task)


def test_an_id_that_occurs_twice_is_named() -> None:
    task = plain()
    task.rows["en"][1] = task.rows["en"][0]
    with pytest.raises(DataError, match="the row with id 'r-0' occurs twice in language 'en'"):
        load(task)


def test_unknown_language_is_named() -> None:
    with pytest.raises(DataError, match="did you mean 'pl'"):
        load(plain(), "en", "pol")


@pytest.mark.parametrize(
    ("one", "other"), [("Straße", "STRASSE"), ("ﬁne\u00a0day", "fine  day"), ("ＥＲ", "er"), ("\ta\n b ", "a b")]
)
def test_normalise_joins_what_reads_the_same(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


def test_normalise_keeps_letters_apart() -> None:
    assert normalise("zażółć") != normalise("zazolc")


class Pairs(Memory):
    """A passage and a question a row; published in three parts."""

    fields = ("passage", "question")
    split_fields = ("passage", "question")
    long_field = "passage"
    pools = ("train", "validation", "test")
    original_language = None
    languages = ("en", "pl")

    def __init__(self, parts: Mapping[Pool, list[tuple[str, str]]]) -> None:
        self.parts, self.gaps = parts, set()

    def read(self, data_dir: str | None, language: str, pool: Pool) -> list[Row]:
        return [
            Row(f"{pool}{i}", {"passage": f"{language} {passage}" if passage else "", "question": question}, 0)
            for i, (passage, question) in enumerate(self.parts[pool])
        ]


SHARED: dict[Pool, list[tuple[str, str]]] = {
    "train": [("one", "a"), ("two", "b"), ("Two ", "c"), ("", "d"), ("b", "c x")],
    "validation": [("two", "e"), ("four", "f")],
    "test": [("TWO", "g"), ("four", "h"), ("five", "i"), ("", "j"), ("b c", "x")],
}


def test_passages_shared_with_held_out_rows_are_counted() -> None:
    data = load(Pairs(SHARED))
    assert {name: number for name, number in data.counts.items() if "passage" in name} == {
        "test_rows_with_a_passage_of_a_train_row": 1,
        "test_rows_with_a_passage_of_a_validation_row": 2,
        "validation_rows_with_a_passage_of_a_train_row": 1,
    }
    # Where one field ends and the next begins counts: `b | c x` is not `b c | x`.
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 5, "validation": 2, "test": 5}


def test_a_field_that_the_prompt_does_not_say_hides_no_leak_and_no_empty_prompt() -> None:
    class Asked(Pairs):
        cluster_fields = ("passage",)

        def prompt(self, fields: Mapping[str, str]) -> str:
            return f"{fields['question']}?"

    parts: dict[Pool, list[tuple[str, str]]] = {
        "train": [("one", "a"), ("two", ""), ("three", "b")],
        "validation": [("four", "c")],
        "test": [("five", "A "), ("six", "")],
    }
    data = load(Asked(parts))
    assert {split: ids(data, split) for split in data.splits} == {
        "train": ["train2"],
        "validation": ["validation0"],
        "test": ["test0"],
    }
    assert (data.counts["dropped_text_of_a_test_row"], data.counts["dropped_empty_text"]) == (1, 2)


def test_rows_that_share_a_passage_with_a_held_out_row_are_dropped_if_asked() -> None:
    data = load(Pairs(SHARED), drop_shared_passages=True)
    assert sorted(ids(data, "train")) == ["train0", "train3", "train4"] and len(ids(data, "test")) == 5
    assert data.counts["dropped_passage_of_a_test_row"] == 4 and not ids(data, "validation")
    assert not any(number for name, number in data.counts.items() if "rows_with_a_passage" in name)


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_a_held_out_passage_is_dropped_elsewhere_even_when_the_cap_drops_the_held_out_row(held_out: str) -> None:
    """The run may be scored on all of them: `evaluate RUN task.test_rows=null`."""
    passages = [f"passage {number}" for number in range(8)]
    parts = {pool: [(passage, f"{pool} question") for passage in passages] for pool in ("train", held_out)}
    task = Pairs({"validation": [("other", "a")], "test": [("another", "b")], **parts})
    task.parts["train"].append(("its own", "c"))
    data = load(task, drop_shared_passages=True, **{f"{held_out}_rows": 1})
    assert ids(data, "train") == ["train8"] and len(ids(data, held_out)) == 1
    assert data.counts[f"dropped_passage_of_a_{held_out}_row"] == 8
