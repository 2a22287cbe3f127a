"""Rows and their machine translation: which side is read, which rows are dropped, and no leak through either."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import pytest

from flare_ds.config import TaskConfig, TranslateConfig
from flare_ds.data import translated
from flare_ds.data.parallel import ParallelData, ParallelRow, load_parallel, translation_jobs
from flare_ds.exceptions import ConfigError
from flare_ds.tasks import Row, Task
from flare_ds.tasks.base import SPLITS, Answer, Pool
from flare_ds.translation.job import TranslationJob

POOL_SIZES = {"train": 200, "test": 30}


class Questions(Task):
    """Published train and test parts, written in each language by itself; answers are free text."""

    name = "questions"
    version = 1
    languages = ("en", "fi")
    parallel = False
    pools = ("train", "test")
    fields = ("context", "question")
    split_fields = ("context",)
    long_field = "context"
    metric = "exact_match"

    def read(self, data_dir: str | None, language: str, pool: Pool) -> list[Row]:
        return [
            Row(
                f"{language}-{i}",
                {"context": f"{language} {pool} context {i // 2} end", "question": f"{language} question {i}"},
                answers=(Answer("end", 0), Answer("the end", 0)),
            )
            for i in range(POOL_SIZES[pool])
        ]

    def prompt(self, fields: dict[str, str]) -> str:
        return f"{fields['context']} {fields['question']}"


class Machine:
    """Stands in for finished translations; what it is asked for is remembered, and some rows go wrong by number."""

    failed: ClassVar[set[int]] = set()
    unlocated: ClassVar[set[int]] = set()
    never_stood: ClassVar[bool] = False
    first_unlocated: ClassVar[set[int]] = set()
    marks: ClassVar[dict[int, tuple[str, ...]]] = {}
    asked: ClassVar[dict[str, TranslationJob]] = {}
    overheard: ClassVar[str] = ""

    @classmethod
    def read(cls, job: TranslationJob, rows: Sequence[Row]) -> Sequence[Row | None]:
        cls.asked[job.split] = job
        return [None if i in cls.failed else cls.say(job, row, i) for i, row in enumerate(rows)]

    @classmethod
    def say(cls, job: TranslationJob, row: Row, number: int) -> Row:
        fields = {name: f"{job.direction.to_language}({text})" for name, text in row.fields.items()}
        if cls.overheard and job.split == "train" and number == 5:
            fields = dict(cls_text(cls.overheard))
        if cls.never_stood:
            return Row(row.id, fields, row.label, tuple(Answer(one.text.upper(), None) for one in row.answers))
        first, second = row.answers
        found = None if number in cls.unlocated else 9
        answers = (Answer(first.text, None if number in cls.first_unlocated else found), Answer(second.text, found))
        return Row(row.id, fields, row.label, answers, cls.marks.get(number, ()))


def cls_text(text: str) -> dict[str, str]:
    context, question = text.split("|")
    return {"context": context, "question": question}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> type[Machine]:
    monkeypatch.setattr(translated, "find_translation", lambda job, _: job)
    monkeypatch.setattr(translated, "read_translation", Machine.read)
    Machine.failed, Machine.unlocated, Machine.first_unlocated = set(), set(), set()
    Machine.asked, Machine.overheard, Machine.marks, Machine.never_stood = {}, "", {}, False
    return Machine


def source_context(row: ParallelRow) -> str:
    (source,) = row.sources
    assert source is not None
    return source.fields["context"]


def load(task: Task, target: str = "fi", **settings: object) -> ParallelData:
    return load_parallel(task, make(target, **settings))


def make(target: str, **settings: object) -> TaskConfig:
    values = {"name": "questions", "source_language": "en", "target_language": target, "sides": "translated"}
    return TaskConfig.model_validate(values | settings)


def test_source_rows_are_trained_on_and_the_targets_own_are_tested() -> None:
    data = load(Questions())
    assert {split: job.direction for split, job in Machine.asked.items()} == {
        "train": ("eng_Latn", "fin_Latn"),
        "validation": ("eng_Latn", "fin_Latn"),
        "test": ("fin_Latn", "eng_Latn"),
    }
    for row in data.splits["train"]:
        (source,) = row.sources
        assert source is not None and source.fields["context"].startswith("en train")
        assert row.target.fields["context"] == f"fin_Latn({source.fields['context']})"
        assert row.target.answers == (Answer("end", 9), Answer("the end", 9))
    for row in data.splits["test"]:
        (source,) = row.sources
        assert source is not None and row.target.fields["context"].startswith("fi test")
        assert source.fields["context"] == f"eng_Latn({row.target.fields['context']})"
        assert row.target.answers == (Answer("end", 0), Answer("the end", 0))
    assert len(data.splits["test"]) == POOL_SIZES["test"]


def test_validation_is_taken_from_train_by_the_hash_of_the_context_and_contexts_stay_together() -> None:
    data = load(Questions())
    contexts = {split: {source_context(row) for row in rows} for split, rows in data.splits.items() if split != "test"}
    assert not contexts["train"] & contexts["validation"]
    for context in contexts["train"] | contexts["validation"]:
        share = int(hashlib.sha256(context.lower().encode()).hexdigest(), 16) / 16**64
        assert (context in contexts["validation"]) == (share < 0.05)
    assert len(data.splits["train"]) + len(data.splits["validation"]) == POOL_SIZES["train"]


class TestAlone(Questions):
    """The target language has a test set, and nothing else."""

    languages = ("en", "fi", "sw")

    def read(self, data_dir: str | None, language: str, pool: Pool) -> list[Row]:
        assert (language, pool) in {("en", "train"), ("sw", "test")}, f"{pool} of {language} is not needed"
        return super().read(data_dir, language, pool)


def test_a_target_language_may_have_a_test_set_alone() -> None:
    data, whole = load(TestAlone(), "sw"), load(Questions())
    assert [row.target.fields["context"][:7] for row in data.splits["test"]] == ["sw test"] * POOL_SIZES["test"]
    for split in ("train", "validation"):
        assert [row.id for row in data.splits[split]] == [row.id for row in whole.splits[split]]
    assert data.counts["rows_read"] == sum(POOL_SIZES.values()), "each row that is needed once"


class Alike(Questions):
    """Every row in every language, and nobody cut them."""

    parallel = True
    pools = ("all",)

    def read(self, data_dir: str | None, language: str, pool: Pool) -> list[Row]:
        rows = super().read(data_dir, language, "train")
        return [replace(row, id=str(number)) for number, row in enumerate(rows)]


def test_no_row_is_trained_on_in_one_language_and_tested_in_another() -> None:
    data = load(Alike())
    ids = {split: {row.id for row in rows} for split, rows in data.splits.items()}
    assert ids["test"] and not ids["test"] & (ids["train"] | ids["validation"])


def test_a_target_the_data_set_lacks_is_translated_throughout() -> None:
    data = load(Questions(), "pt")
    assert {job.direction for job in Machine.asked.values()} == {("eng_Latn", "por_Latn")}
    assert all(row.target.fields["context"].startswith("por_Latn(en test") for row in data.splits["test"])


def test_rows_whose_translation_failed_are_dropped_in_training_and_kept_in_the_test() -> None:
    Machine.failed = {0, 3}
    data = load(Questions())
    assert data.counts["dropped_translation_failed"] == 2 + sum(
        number < len(Machine.asked["validation"].rows) for number in Machine.failed
    )
    assert data.counts["test_rows_without_source"] == 2
    assert [row.sources for row in data.splits["test"]][:4].count((None,)) == 2
    assert len(data.splits["test"]) == POOL_SIZES["test"]


def test_rows_whose_answer_was_not_found_again_are_dropped_in_training_and_kept_in_the_test() -> None:
    Machine.unlocated = {1}
    for target, kept in (("fi", POOL_SIZES["test"]), ("pt", POOL_SIZES["test"])):
        data = load(Questions(), target)
        assert len(data.splits["test"]) == kept
        assert data.counts["test_rows_answer_not_found_in_translation"] == 1
        assert data.counts["dropped_answer_not_found_in_translation"] == 2
        assert all(row.target.answers[0].start is not None for row in data.splits["train"])


def test_an_answer_that_was_found_again_is_trained_on() -> None:
    Machine.first_unlocated = {2}
    data = load(Questions())
    assert data.counts.get("dropped_answer_not_found_in_translation") is None
    answers = [row.target.answers for row in data.splits["train"]]
    assert answers.count((Answer("the end", 9), Answer("end", None))) == 1
    assert all(first.start is not None for first, _ in answers)


class Abstractive(Questions):
    """Its answers stand in no text, as `yes` and `7` do not."""

    def read(self, data_dir: str | None, language: str, pool: Pool) -> list[Row]:
        return [replace(row, answers=(Answer("yes", None),)) for row in super().read(data_dir, language, pool)]


def test_an_answer_that_never_stood_in_the_text_keeps_its_text(machine: type[Machine]) -> None:
    before, machine.never_stood = load(Questions()), True
    data = load(Abstractive())
    assert not [name for name in data.counts if "answer_not_found" in name]
    assert {split: len(rows) for split, rows in data.splits.items()} == {
        split: len(rows) for split, rows in before.splits.items()
    }
    assert data.splits["train"][0].target.answers == (Answer("YES", None),)


@pytest.mark.parametrize("side", ["target", "source"])
def test_a_translation_that_says_what_a_test_row_says_is_dropped(side: str) -> None:
    before = load(Questions())
    row = before.splits["test"][7]
    said = row.target if side == "target" else row.sources[0]
    assert said is not None
    Machine.overheard = f" {said.fields['context'].upper()} |{said.fields['question']}"
    after = load(Questions())
    assert after.counts["dropped_text_of_a_test_row"] == 1
    assert len(after.splits["train"]) == len(before.splits["train"]) - 1


def test_only_the_rows_within_the_caps_are_translated() -> None:
    jobs = translation_jobs(Questions(), make("fi", train_rows=11, validation_rows=2, test_rows=3))
    assert [(job.split, len(job.rows)) for job in jobs] == [("train", 11), ("validation", 2), ("test", 3)]
    for config in (make("en"), make("en", sides="own")):
        with pytest.raises(ConfigError, match="nothing is to be translated") as raised:
            translation_jobs(Questions(), config)
        assert "task.sides=translated" in raised.value.fix


def test_marked_translations_are_counted_and_dropped_if_asked() -> None:
    Machine.marks = {0: ("cut_off",), 1: ("cut_off", "loop"), 2: ("loop",)}
    kept = load(Questions())
    assert {name: number for name, number in kept.counts.items() if "_translation_" in name} == {
        f"{split}_rows_translation_{mark}": 2 for split in SPLITS for mark in ("cut_off", "loop")
    }
    translate = TranslateConfig.model_validate({"drop": ["loop"]})
    dropped = load_parallel(Questions(), make("fi"), translate)
    assert {split: len(kept.splits[split]) - len(rows) for split, rows in dropped.splits.items()} == {
        "train": 2,
        "validation": 2,
        "test": 0,
    }
    assert dropped.counts["dropped_translation_loop"] == 4 and dropped.counts["train_rows_translation_cut_off"] == 1
