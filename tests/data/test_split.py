"""Published parts stay what they are; what is missing of them is cut from the training part by the hash of its text."""

import hashlib

import pytest

from flare_ds.config import TaskConfig
from flare_ds.data.parallel import ParallelData, load_parallel
from flare_ds.exceptions import DataError
from flare_ds.tasks import Row, Task
from flare_ds.tasks.base import Pool

SIZES: dict[Pool, int] = {"train": 300, "validation": 20, "test": 40}


class Published(Task):
    """Row ids begin again in every part, as row numbers do."""

    name = "published"
    version = 1
    languages = ("en", "pl")
    labels = ("no", "yes")

    def __init__(self, *pools: Pool) -> None:
        self.pools = pools

    def read(self, data_dir: str | None, language: str, pool: Pool) -> list[Row]:
        return [Row(str(i), {"text": f"{language} {pool} {i}"}, i % 2) for i in range(SIZES[pool])]

    def prompt(self, fields: dict[str, str]) -> str:
        return fields["text"]


def load(task: Task, target: str = "pl", **settings: object) -> ParallelData:
    return load_parallel(task, TaskConfig.model_validate({"name": task.name, "target_language": target, **settings}))


def texts(data: ParallelData, split: str) -> set[str]:
    return {row.target.fields["text"] for row in data.splits[split]}


def test_published_parts_are_kept() -> None:
    data = load(Published("train", "validation", "test"))
    for split, size in SIZES.items():
        assert texts(data, split) == {f"pl {split} {i}" for i in range(size)}
    assert data.counts["rows_read"] == sum(SIZES.values())


def test_validation_is_cut_from_train_where_nobody_published_one() -> None:
    data = load(Published("train", "test"))
    held_out = {
        f"pl train {i}"
        for i in range(SIZES["train"])
        if int(hashlib.sha256(f"en train {i}".encode()).hexdigest(), 16) / 16**64 < 0.05
    }
    assert held_out and texts(data, "validation") == held_out
    assert texts(data, "train") == {f"pl train {i}" for i in range(SIZES["train"])} - held_out
    assert texts(data, "test") == {f"pl test {i}" for i in range(SIZES["test"])}


def test_validation_rows_are_the_same_in_every_language() -> None:
    def validation(source: str, target: str) -> list[str]:
        data = load(Published("train", "test"), target, source_language=source)
        return [row.id for row in data.splits["validation"]]

    assert validation("en", "pl") == validation("pl", "en") == validation("pl", "pl") == validation("en", "en")


def test_a_cap_takes_rows_from_everywhere_in_a_file() -> None:
    numbers = [int(row.id) for row in load(Published("train", "validation", "test"), train_rows=30).splits["train"]]
    assert len(set(numbers)) == 30 and min(numbers) < 100 and max(numbers) > 200


def test_languages_that_are_not_parallel_need_a_translation() -> None:
    task = Published("train", "test")
    task.parallel = False
    with pytest.raises(DataError, match="translated"):
        load(task)
    assert len(load(task, "en").splits["test"]) == SIZES["test"]
