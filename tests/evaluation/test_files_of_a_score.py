"""metrics.json stands for the predictions beside it, whenever an evaluation ends."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from flare_ds.cli import main
from flare_ds.evaluation import evaluate, shown
from flare_ds.evaluation.evaluate import _write
from flare_ds.evaluation.other_rows import OWN
from flare_ds.evaluation.scores import Scores
from flare_ds.runs import RunDirectory
from flare_ds.scoring.predictions import PREDICTIONS, read_predictions
from flare_ds.settings import load_config
from tests.report.runs import write_run
from tests.toy import toy_settings, write_config


@pytest.fixture(scope="module")
def run_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = toy_settings(tmp_path_factory.mktemp("scored"), method="zero_shot")
    settings["task"] |= {"validation_rows": 9, "test_rows": 9}
    return write_config(settings)


def test_a_tracker_that_fails_costs_no_score(
    run_yaml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(shown, "Trackers", unreachable)
    assert main(["evaluate", str(run_yaml)]) == 0
    assert "is scored, but tracking its scores failed: ConnectionError('no route')" in capsys.readouterr().err
    assert RunDirectory(run_yaml.with_suffix("")).finished


def test_two_files_of_one_name_do_not_share_a_result(
    run_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run_yaml)]) == 0
    files = {"a/new.csv": "target,label\nword1,positive\n", "b/new.jsonl": '{"target": "x", "label": 1}\n'}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    first, second = (["evaluate", str(run_yaml), "--file", str(tmp_path / name)] for name in files)
    result = run_yaml.with_suffix("") / "metrics-file-new.json"
    assert main(first) == 0 and main(first) == 0
    before = result.read_bytes()
    capsys.readouterr()
    assert main(second) == 1
    said = capsys.readouterr().err
    assert f"is the result of {tmp_path}/a/new.csv" in said and "delete metrics-file-new.json" in said
    assert result.read_bytes() == before
    result.unlink()
    assert main(second) == 0


def test_what_ends_between_the_files_leaves_no_score_of_other_predictions(tmp_path):
    run = RunDirectory(write_run(tmp_path, "zero_shot", "zero_shot", 1, [True, False]))
    config = load_config(run.path, ["tracking.to=[]"])
    record = {"id": "other", "cluster": 1, "label": "yes", "prediction": "yes"}
    assert run.finished
    with pytest.raises(AttributeError):  # for want of a cache, which metrics.json would be made of
        _write(run.path, Scores("accuracy", "ranked", {"accuracy": 1.0}, [record]), config, None, OWN, seconds=1.0)
    assert read_predictions(run.path / PREDICTIONS) == [record] and not run.finished


def test_a_score_finishes_no_run_that_still_trains(tmp_path):
    """As one is left that is trained on, or whose training.json was deleted to that end."""
    run = RunDirectory(write_run(tmp_path, "lora", "lora", 1, [True, False]))
    assert run.finished
    (run.path / "training.json").unlink()
    assert not run.finished


def test_it_is_written_whether_rows_say_the_same_in_every_language(tmp_path, monkeypatch):
    """VitaminC is English alone; in other languages its rows are translations of one test set."""
    monkeypatch.setattr(evaluate, "model_fingerprint", str)
    run = write_run(tmp_path, "zero_shot", "zero_shot", 1, [True], name="vitaminc", sides="translated")
    cache = SimpleNamespace(key="any", manifest=SimpleNamespace(fields={"task_version": 1}))
    assert evaluate._what_was_scored(run, load_config(run), cache, OWN)["parallel"] is True
