"""The report on run directories written by hand: what the table says is computed again here, another way."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from flare_ds.exceptions import DataError
from flare_ds.report import report
from flare_ds.runs import find_runs
from flare_ds.settings import parse_config


def write_run(root: Path, name: str, method: str, seed: int, correct=None, *, target="pl", steps=40, r=8) -> Path:
    """A run directory; finished if `correct` says which test rows were right."""
    directory = root / name
    directory.mkdir(parents=True)
    config = {
        "method": method,
        "run_dir": str(directory),
        "deepspeed": "ds.json",
        "model": {"base": "base"},
        "task": {"name": "multiemo", "data_dir": "data", "target_language": target},
        "adapter": {"r": r},
        "train": {"steps": steps, "seed": seed},
    }
    (directory / "config.yaml").write_text(parse_config(config, origin="test").to_yaml())
    if correct is not None:
        write_result(directory, method, correct, seed)
    return directory


def write_result(directory: Path, method: str, correct, seed: int) -> None:
    rows = [{"id": f"r{i}", "label": "yes", "prediction": "yes" if right else "no"} for i, right in enumerate(correct)]
    write_scores(directory, "accuracy", float(np.mean(correct)), rows)
    if method != "zero_shot":
        costs = {"trained_parameters": 123456, "median_step_seconds": 1.0 + seed, "tokens_per_second": 1000.0 * seed}
        (directory / "training.json").write_text(json.dumps(costs))


def write_scores(directory: Path, metric: str, score: float, rows: list[dict]) -> None:
    (directory / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = {
        "schema": 2,
        "metric": metric,
        "score": score,
        "num_examples": len(rows),
        "confidence_interval": [0.111, 0.999],
    }
    (directory / "metrics.json").write_text(json.dumps(metrics))


def write_log(directory: Path, *lines: dict, torn: str = "") -> None:
    (directory / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def validation(step: int, score: float) -> dict:
    return {"step": step, "validation_score": score, "validation_loss": 1 - score}


def cells(text: str) -> list[list[str]]:
    """The lines of all tables, as lists of cells."""
    rows = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


def random_correct(seed: int, share: float, n: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < share


def test_one_seed_is_reported_as_its_files_say(tmp_path):
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True, True, False, True])
    text = report(tmp_path)
    assert ["pl", "lora", "1", "0.750", "0.111 to 0.999", "123,456", "2.00 s", "1,000"] in cells(text)
    assert (tmp_path / "report.md").read_text() == text
    assert f"tensorboard --logdir {tmp_path}" in text


def test_methods_that_train_nothing_have_no_costs(tmp_path):
    write_run(tmp_path, "pl/zero_shot-seed1", "zero_shot", 1, [True, False])
    assert ["pl", "zero_shot", "1", "0.500", "0.111 to 0.999", "-", "-", "-"] in cells(report(tmp_path))


def test_seeds_are_averaged_and_the_interval_is_over_rows(tmp_path):
    outcomes = {seed: random_correct(seed, 0.6) for seed in (1, 2, 3)}
    for seed, correct in outcomes.items():
        write_run(tmp_path, f"pl/lora-seed{seed}", "lora", seed, correct)
    (line,) = [row for row in cells(report(tmp_path)) if row[1] == "lora"]
    rows = np.mean(list(outcomes.values()), axis=0)
    half = 1.96 * rows.std() / np.sqrt(len(rows))
    lo, hi = map(float, line[4].split(" to "))
    assert line[2] == "1, 2, 3"
    assert float(line[3]) == pytest.approx(rows.mean(), abs=5e-4)
    assert (lo, hi) == pytest.approx((rows.mean() - half, rows.mean() + half), abs=0.005)
    assert line[5:] == ["123,456", "3.00 s", "2,000"]


def test_unfinished_runs_stand_in_the_table(tmp_path):
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True, False])
    write_log(write_run(tmp_path, "pl/lora-seed2", "lora", 2), {"step": 17, "loss": 1.0}, torn='{"step": 18, "lo')
    trained = write_run(tmp_path, "pl/flare-seed1", "flare", 1)
    (trained / "training.json").write_text("{}")
    write_run(tmp_path, "es/flare-seed1", "flare", 1, target="es")
    lines = [row[:4] for row in cells(report(tmp_path))]
    assert ["pl", "lora", "1", "0.500"] in lines
    assert ["pl", "lora", "2", "unfinished: trained 17 of 40 steps"] in lines
    assert ["pl", "flare", "1", "unfinished: trained, not evaluated"] in lines
    assert ["es", "flare", "1", "unfinished: not started"] in lines


def test_runs_with_other_settings_are_not_averaged(tmp_path):
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True, True], r=8)
    write_run(tmp_path, "pl/lora-seed2", "lora", 2, [False, False], r=16)
    lines = [row for row in cells(report(tmp_path)) if row[1].startswith("lora")]
    assert sorted((row[1], row[3]) for row in lines) == [
        ("lora (pl/lora-seed1)", "1.000"),
        ("lora (pl/lora-seed2)", "0.000"),
    ]


def test_stage_1_is_called_the_task_adapter(tmp_path):
    write_run(tmp_path, "stage1", "lora", 1, [True], target="en")
    assert ["en", "task adapter", "1", "1.000"] in [row[:4] for row in cells(report(tmp_path))]


def test_flare_minus_lora_pairs_rows_by_id_for_each_seed_and_for_all(tmp_path):
    difference = []
    for seed in (1, 2):
        flare, lora = random_correct(seed, 0.7), random_correct(seed + 10, 0.5)
        write_run(tmp_path, f"pl/flare-seed{seed}", "flare", seed, flare)
        write_run(tmp_path, f"pl/lora-seed{seed}", "lora", seed, lora)
        predictions = tmp_path / f"pl/lora-seed{seed}/predictions.jsonl"
        predictions.write_text("\n".join(reversed(predictions.read_text().splitlines())) + "\n")
        difference.append(flare.astype(float) - lora)
    lines = {row[1]: row for row in cells(report(tmp_path)) if len(row) == 5}
    for seeds, values in {"1": difference[0], "2": difference[1], "1, 2": np.mean(difference, axis=0)}.items():
        half = 1.96 * values.std() / np.sqrt(len(values))
        assert float(lines[seeds][3]) == pytest.approx(values.mean(), abs=5e-4)
        bounds = [float(bound) for bound in lines[seeds][4].split(" to ")]
        assert bounds == pytest.approx([values.mean() - half, values.mean() + half], abs=0.007)


def test_runs_scored_on_different_rows_are_not_compared(tmp_path):
    write_run(tmp_path, "pl/flare-seed1", "flare", 1, [True, True])
    write_run(tmp_path, "pl/lora-seed1", "lora", 1, [True, True, False])
    text = report(tmp_path)
    assert "scored on different test rows" in text
    assert "+0." not in text


def differences(text: str) -> dict[str, tuple[float, list[float]]]:
    """Of the table of differences: seeds, the difference, its bounds."""
    lines = [row for row in cells(text) if len(row) == 5 and row[1][0].isdigit()]
    return {row[1]: (float(row[3]), [float(bound) for bound in row[4].split(" to ")]) for row in lines}


def test_free_answers_are_compared_by_their_exact_matches(tmp_path):
    matches = {}
    for method, share in (("flare", 0.7), ("lora", 0.5)):
        for seed in (1, 2):
            found = matches[method, seed] = random_correct(seed + len(method), share)
            # What was said never equals a gold answer letter by letter.
            rows = [
                {"id": f"r{i}", "answers": ["Rome"], "prediction": "rome.", "exact_match": bool(match), "f1": 0.9}
                for i, match in enumerate(found)
            ]
            directory = write_run(tmp_path, f"hi/{method}-seed{seed}", method, seed, [True])
            write_scores(directory, "exact_match", float(found.mean()), rows)
    text = report(tmp_path)
    (line,) = [row for row in cells(text) if row[1] == "lora"]
    assert float(line[3]) == pytest.approx(np.mean([matches["lora", seed] for seed in (1, 2)]), abs=5e-4)
    values = sum(matches["flare", seed].astype(float) - matches["lora", seed] for seed in (1, 2)) / 2
    half = 1.96 * values.std() / np.sqrt(len(values))
    mean, bounds = differences(text)["1, 2"]
    assert mean == pytest.approx(values.mean(), abs=5e-4)
    assert bounds == pytest.approx([values.mean() - half, values.mean() + half], abs=0.007)
    assert "Score: exact_match on 300 test rows" in text


def test_macro_f1_is_compared_as_itself_not_as_a_mean_over_rows(tmp_path):
    """The rare class decides macro F1 and hardly moves accuracy."""
    true = ["neutral"] * 180 + ["negative"] * 20
    said = {"flare": true, "lora": ["neutral"] * 200}
    for method, predictions in said.items():
        directory = write_run(tmp_path, f"ace/{method}-seed1", method, 1, [True])
        rows = [
            {"id": f"r{i}", "label": label, "prediction": prediction}
            for i, (label, prediction) in enumerate(zip(true, predictions, strict=True))
        ]
        write_scores(directory, "macro_f1", 1.0, rows)
    mean, (lo, hi) = differences(report(tmp_path))["1"]
    f1 = 2 * 0.9 / 1.9 / 2  # of the lora run: the rare class is never right
    assert mean == pytest.approx(1 - f1, abs=5e-4)
    samples = np.random.default_rng(0).binomial(200, 0.9, 20_000) / 200
    expected = np.quantile(1 - samples / (1 + samples), [0.025, 0.975])
    assert (lo, hi) == pytest.approx(expected, abs=0.002)


def test_runs_scored_by_different_metrics_are_not_compared(tmp_path):
    for method in ("flare", "lora"):
        write_run(tmp_path, f"pl/{method}-seed1", method, 1, [True, True])
    metrics = tmp_path / "pl/lora-seed1/metrics.json"
    metrics.write_text(metrics.read_text().replace("accuracy", "macro_f1"))
    assert "by other metrics" in report(tmp_path)


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


@pytest.mark.parametrize("name", ["metrics.json", "predictions.jsonl", "training.json"])
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
