"""Which rows are translations of one set: only those that no language of a task has by itself."""

import pytest

from flare_ds.config import TaskConfig
from flare_ds.tasks import TableTask
from flare_ds.tasks.base import Split
from flare_ds.tasks.sides import are_parallel


@pytest.mark.parametrize(
    ("pair", "sides", "split", "alike"),
    [
        ("en-xx", "translated", "test", True),
        ("en-pl", "translated", "test", False),
        ("en-pl", "translated", "validation", True),
        ("en-en", "translated", "test", True),  # the very rows that others are translations of
        ("en-en", "own", "test", False),
    ],
)
def test_rows_that_differ_by_language_are_alike_where_they_are_translations_of_one(
    pair: str, sides: str, split: Split, alike: bool
) -> None:
    source, target = pair.split("-")
    config = TaskConfig(name="a", source_language=source, target_language=target, sides=sides)
    task = TableTask(
        name="a", languages=("en", "pl"), pools=("train", "test"), fields=("text",), template="{text}:", parallel=False
    )
    assert are_parallel(task, config, split) == alike
