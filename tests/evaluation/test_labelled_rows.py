"""The labels of a user's own file mean what they mean in the task's own tables."""

from pathlib import Path

import pytest
from datasets import ClassLabel, Features, Value

from flare_ds.evaluation.labelled_rows import read_labelled
from flare_ds.tasks.table import TableTask
from tests.evaluation.test_given_rows import config_of
from tests.tasks.tables import write_table

TASK = TableTask(
    name="opinions",
    languages=("en", "pl", "cs"),
    pools=("train", "test"),
    fields=("text",),
    labels={"en": ("no", "yes"), "pl": ("nie", "tak"), "cs": ("ne", "no")},
    template="{text} =",
)


@pytest.mark.parametrize(("names", "labels"), [(["no", "yes"], [0, 1]), (["yes", "no"], [1, 0])])
def test_class_names_of_the_file_decide_what_its_integers_mean(tmp_path: Path, names: list, labels: list) -> None:
    features = Features({"target": Value("string"), "label": ClassLabel(names=names)})
    rows = [{"target": "a", "label": 0}, {"target": "b", "label": 1}]
    path = write_table(tmp_path / "rows.parquet", rows, features)
    found = read_labelled(config_of("lora", source_language="pl", target_language="en"), TASK, path)
    assert [row.label for row in found] == labels


@pytest.mark.parametrize(("language", "label"), [("en", 0), ("pl", 1), ("cs", 1)])
def test_a_word_of_two_languages_means_what_it_does_in_the_target_and_in_the_tasks_tables(
    tmp_path: Path, language: str, label: int
) -> None:
    write_table(tmp_path / f"{language}/test.csv", [{"text": "a", "label": "no"}])
    (in_table,) = TASK.read(str(tmp_path), language, "test")
    path = write_table(tmp_path / "rows.csv", [{"target": "a", "label": "no"}])
    source = "pl" if language == "en" else "en"
    (row,) = read_labelled(config_of("lora", source_language=source, target_language=language), TASK, path)
    assert row.label == in_table.label == label
