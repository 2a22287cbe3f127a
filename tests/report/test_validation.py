"""What the report says of runs that are trained and not scored on test rows."""

import json

import pytest
import yaml

from flare_ds.exceptions import DataError
from flare_ds.reporting import report
from flare_ds.runs import RunDirectory
from tests.report.runs import tables, write_run, write_training

BEST = {"lora": [0.50, 0.60, 0.40], "flare": [0.70, 0.90]}


def write_trained(root, method, seed, best):
    run = write_run(root, f"pl/{method}-seed{seed}", method, seed)
    write_training(run, best_validation_score=best)
    return run


@pytest.fixture
def sweep(tmp_path):
    for method, scores in BEST.items():
        for seed, best in enumerate(scores, start=1):
            write_trained(tmp_path, method, seed, best)
    zero = write_run(tmp_path, "pl/zero_shot-seed1", "zero_shot", 1)
    (zero / "metrics-validation.json").write_text(json.dumps({"score": 0.3}))
    write_run(tmp_path, "pl/late-seed1", "late", 1)  # not trained
    return tmp_path


def of_validation(text):
    (found,) = [table for table in tables(text) if "by seed" in table[0] and "score" in table[0]]
    return {line["method"]: tuple(line.values())[4:] for line in found}


def test_validation_scores_are_compared_by_seed(sweep):
    text = report(sweep).text
    assert "## On validation rows" in text
    assert of_validation(text) == {
        "zero_shot": ("-", "0.300", "-", "-0.200", "-0.200 -0.300 -0.100"),
        "lora": ("1, 2, 3", "0.500", "0.100", "-", "-"),
        "flare": ("1, 2", "0.800", "0.141", "+0.250", "+0.200 +0.300"),
    }


def test_scores_of_other_rows_are_not_subtracted(sweep):
    """Training validates on the first rows, where it is told to; what trains nothing is scored on all."""
    for config in sweep.glob("pl/*/config.yaml"):
        settings = yaml.safe_load(config.read_text())
        settings["train"] = {**(settings.get("train") or {}), "validate_rows": 5}
        config.write_text(yaml.safe_dump(settings))
    found = of_validation(report(sweep).text)
    assert found["zero_shot"] == ("-", "0.300", "-", "-", "-")
    assert found["flare"] == ("1, 2", "0.800", "0.141", "+0.250", "+0.200 +0.300")


def test_ranked_and_written_answers_are_not_subtracted(sweep):
    """What trains on label words ranks them until its test; what trains nothing writes from the first."""
    for config in sweep.glob("pl/*/config.yaml"):
        settings = yaml.safe_load(config.read_text())
        settings["evaluate"] = {**(settings.get("evaluate") or {}), "answers": "generated"}
        config.write_text(yaml.safe_dump(settings))
    found = of_validation(report(sweep).text)
    assert found["zero_shot"] == ("-", "0.300", "-", "-", "-")
    assert found["flare"] == ("1, 2", "0.800", "0.141", "+0.250", "+0.200 +0.300")


def test_a_lora_that_is_set_otherwise_is_told(tmp_path):
    write_training(write_run(tmp_path, "pl/flare-seed1", "flare", 1, r=16), best_validation_score=0.6)
    write_training(write_run(tmp_path, "pl/lora-seed1", "lora", 1, r=8), best_validation_score=0.5)
    assert of_validation(report(tmp_path).text)["flare"] == ("1", "0.600", "-", "+0.100, set otherwise", "-")


def test_what_is_scored_on_test_rows_has_no_such_table(tmp_path):
    for method in BEST:
        write_run(tmp_path, f"pl/{method}-seed1", method, 1, [True, False])
    assert "validation rows" not in report(tmp_path).text


def test_a_score_that_cannot_be_read_is_a_line(sweep):
    run = sweep / "pl/zero_shot-seed1"
    (run / "metrics-validation.json").write_text("{")
    with pytest.raises(DataError) as told:
        RunDirectory(run).read("metrics-validation.json")
    assert told.value.fix == f"flare-ds evaluate {run} --split validation"
    found = report(sweep)
    assert [one.directory.name for one in found.unreadable] == ["zero_shot-seed1"]
    assert "cannot be read" in found.text and "metrics-validation.json" in found.text
    assert "zero_shot" not in of_validation(found.text)
