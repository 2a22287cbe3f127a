"""The report on run directories written by hand: its files, its learning curves, and what it refuses."""

import csv
import sys

import pytest

from flare_ds.exceptions import DataError
from flare_ds.reporting import report
from flare_ds.runs import find_runs
from tests.report.runs import methods, tables, validation, write_log, write_run


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
    text = report(tmp_path, out=out).text
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
    text = report(tmp_path).text
    assert (tmp_path / "learning_curves.csv").is_file()
    assert "learning_curves.png" not in text
    assert "pip install matplotlib" in text


def test_a_directory_without_runs_is_said_so(tmp_path):
    with pytest.raises(DataError, match="no runs below"):
        report(tmp_path)


@pytest.mark.parametrize("name", ["metrics.json", "predictions.parquet", "training.json", "train_log.jsonl"])
def test_a_damaged_run_is_a_line_and_the_rest_stands(tmp_path, name):
    for seed in (1, 2):
        write_run(tmp_path, f"pl/lora-seed{seed}", "lora", seed, [True, False])
    (tmp_path / "pl/lora-seed2" / name).write_text("{broken\n")
    found = report(tmp_path)
    assert [run.directory for run in found.unreadable] == [tmp_path / "pl/lora-seed2"]
    assert [(line["method"], line["seeds"]) for line in methods(found.text)] == [("lora", "1 (1)")]
    (line,) = tables(found.text)[1]
    assert line["run"] == "pl/lora-seed2" and line["problem"].startswith("cannot be read:") and name in line["problem"]


def test_damaged_settings_are_a_line_too(tmp_path):
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True])
    write_run(tmp_path, "pl/lora-seed2", "lora", 2, [True])
    path = tmp_path / "pl/lora-seed2/config.yaml"
    path.write_text(path.read_text().replace("steps: 40", "steps: forty"))
    assert "train.steps='forty'" in report(tmp_path).unreadable[0].problem


def test_metrics_of_another_schema_are_a_line(tmp_path):
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True])
    (tmp_path / "pl/lora-seed1/metrics.json").write_text('{"schema": 1}')
    assert "schema 1" in report(tmp_path).text


@pytest.mark.parametrize("name", ["wandb/config.yaml", "x/.hydra/config.yaml", "config.yaml"])
@pytest.mark.parametrize("text", ["lr: {value: 1}\n", "method: sgd\nmodel: resnet\n", "a: [\n", "- 1\n", ""])
def test_the_config_of_another_program_is_passed_by(tmp_path, name, text):
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True])
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    found = report(tmp_path)
    assert not found.unreadable and len(methods(found.text)) == 1


def test_linked_runs_are_found_once_and_cycles_end(tmp_path):
    write_run(tmp_path, "runs/pl/lora-seed1", "lora", 1, [True])
    write_run(tmp_path, "disk/lora-seed2", "lora", 2, [False])
    (tmp_path / "runs/pl/lora-seed2").symlink_to("../../disk/lora-seed2")
    (tmp_path / "runs/again").symlink_to("pl")
    (tmp_path / "runs/pl/up").symlink_to("..")
    (line,) = methods(report(tmp_path / "runs").text)
    assert line["seeds"] == "2 (1, 2)"


def test_a_run_directory_itself_can_be_reported(tmp_path):
    directory = write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True])
    assert [run.directory for run in find_runs(directory)[0]] == [directory]


def test_scores_of_another_adapter_are_not_shown(tmp_path):
    """A better adapter came after the evaluation: the run waits for another one."""
    directory = write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True])
    (directory / "adapter/adapter_model.safetensors").write_bytes(b"better")
    (line,) = methods(report(tmp_path).text)
    assert line["score"] == "unfinished: trained; its scores are of another adapter"
