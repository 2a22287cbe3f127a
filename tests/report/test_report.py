"""The report on run directories written by hand: its files, its learning curves, and what it refuses."""

import csv
import sys

import pytest

from flare_ds.exceptions import DataError
from flare_ds.report import report
from flare_ds.runs import find_runs
from tests.report.runs import validation, write_log, write_run


def test_learning_curves_hold_the_validations(tmp_path):
    directory = write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True])
    write_log(
        directory,
        {"step": 20, "loss": 2.0},
        validation(20, 0.5),
        {"step": 40, "loss": 1.0},
        validation(40, 0.6),
    )
    out = tmp_path / "elsewhere"
    text = report(tmp_path, out=out)
    rows = list(csv.DictReader((out / "learning_curves.csv").open()))
    assert [(row["run"], row["step"], row["validation_score"]) for row in rows] == [
        ("pl/lora-seed1", "20", "0.5"),
        ("pl/lora-seed1", "40", "0.6"),
    ]
    assert (out / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert "(learning_curves.png)" in text
    assert sorted(path.name for path in out.iterdir()) == ["learning_curves.csv", "learning_curves.png", "report.md"]


def test_learning_curves_of_free_answers_have_no_loss(tmp_path):
    directory = write_run(tmp_path, "hi/lora-seed1", "lora", 1, [True])
    write_log(directory, {"step": 20, "validation_score": 0.5, "validation_exact_match": 0.5, "validation_f1": 0.6})
    report(tmp_path)
    (row,) = csv.DictReader((tmp_path / "learning_curves.csv").open())
    assert (row["validation_score"], row["validation_loss"]) == ("0.5", "")


def test_without_matplotlib_there_is_still_the_csv(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_log(write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True]), validation(20, 0.5))
    text = report(tmp_path)
    assert (tmp_path / "learning_curves.csv").is_file()
    assert "learning_curves.png" not in text
    assert "pip install matplotlib" in text


def test_a_directory_without_runs_is_said_so(tmp_path):
    with pytest.raises(DataError, match="no runs below"):
        report(tmp_path)


@pytest.mark.parametrize("name", ["metrics.json", "predictions.parquet", "training.json"])
def test_a_damaged_file_is_named(tmp_path, name):
    for seed in (1, 2):
        write_run(tmp_path, f"pl/lora-seed{seed}", "lora", seed, [True, False])
    (tmp_path / "pl/lora-seed2" / name).write_text("{broken\n")
    with pytest.raises(DataError, match=f"lora-seed2/{name}"):
        report(tmp_path)


def test_metrics_of_another_schema_are_refused(tmp_path):
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True])
    (tmp_path / "pl/lora-seed1/metrics.json").write_text('{"schema": 1}')
    with pytest.raises(DataError, match="schema 1"):
        report(tmp_path)


def test_a_run_directory_itself_can_be_reported(tmp_path):
    directory = write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True])
    assert [run.directory for run in find_runs(directory)] == [directory]
