"""tasks, models and status: what there is, and how far runs are, damaged ones among them."""

import gc
import os
import shutil
from pathlib import Path

import pytest

from flare_ds.cli import main
from flare_ds.fetch.sources import DATA, MODELS
from flare_ds.locks import holder_of
from flare_ds.models.checked import checked_table
from flare_ds.runs import RunDirectory
from flare_ds.runtime.engine import make_room
from flare_ds.settings import load_config
from flare_ds.tasks import TASKS
from tests.toy import toy_settings, write_config


def cells(printed: str) -> list[list[str]]:
    """The lines of the first table, without its heading."""
    lines = printed.partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_tasks_lists_all_and_where_their_data_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    listed = {line[0]: line for line in cells(capsys.readouterr().out)}
    assert list(listed) == list(TASKS)
    for name, (_, languages, answers, metric, pairs, data) in listed.items():
        task = TASKS.get(name)
        assert languages.split() == list(task.languages) and metric == task.metric
        assert answers == (", ".join(task.labels) or "free text")
        assert (data == f"flare-ds fetch data {name}") == (name in DATA)
        assert (pairs == "say the same") == (name not in ("tydiqa", "vitaminc"))
    assert listed["xnli"][-1] == "hub: facebook/xnli"


def test_models_lists_what_was_checked_and_what_can_be_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(checked_table() + "\n\n")
    for name in MODELS:
        assert f"| flare-ds fetch model {name}" in printed and MODELS.get(name).licence in printed


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and scored run, which this process holds, and copies of it that are less far, or damaged."""
    root = tmp_path_factory.mktemp("status")
    settings = toy_settings(root, name="runs/held", steps=3, validate_every=2)
    settings["task"] |= {"train_rows": 60, "validation_rows": 8, "test_rows": 9}
    (root / "runs").mkdir()
    config = str(write_config(settings))
    assert main(["train", config]) == 0
    make_room()
    gc.collect()
    shutil.copytree(root / "runs/held", root / "runs/pl/trained")
    assert main(["evaluate", config]) == 0
    make_room()
    held, pl = root / "runs/held", root / "runs/pl"
    for name in ("scored", "stopped", "no-log", "no-config", "no-metrics", "other-adapter"):
        shutil.copytree(held, pl / name)
    for copy in pl.iterdir():
        (copy / ".lock").unlink()
    for name in ("training.json", "metrics.json"):
        (pl / "stopped" / name).unlink()
    (pl / "no-log/train_log.jsonl").write_text('{"step": 1\n')
    (pl / "no-config/config.yaml").write_text("method: [flare")
    (pl / "no-metrics/metrics.json").write_text("{}")
    with (pl / "other-adapter/adapter/adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    RunDirectory(pl / "planned").claim(load_config(config, [f"run_dir={pl / 'planned'}", "train.steps=7"]))
    RunDirectory(pl / "zero").claim(load_config(config, [f"run_dir={pl / 'zero'}", "method=zero_shot"]))
    for name in ("cache.json", "metrics-validation.json"):  # as in a sweep that is judged by validation rows
        (pl / "zero" / name).write_text("{}")
    (pl / "notes").mkdir()
    (pl / "notes/config.yaml").write_text("title: of another program")
    return root / "runs"


def test_status_says_how_far_each_run_is(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(runs)]) == 1, "some are damaged"
    printed = capsys.readouterr().out
    found = {line[0]: line[1:] for line in cells(printed)}
    states = {name: line[0] for name, line in found.items()}
    assert states == {
        "held": "running",
        "pl/trained": "trained",
        "pl/scored": "scored",
        "pl/stopped": "stopped",
        "pl/planned": "planned",
        "pl/zero": "scored",
        "pl/other-adapter": "trained",
        "pl/no-log": "damaged",
        "pl/no-config": "damaged",
        "pl/no-metrics": "damaged",
    }
    assert printed.endswith("10 runs: 1 running, 3 damaged, 2 trained, 1 planned, 2 scored, 1 stopped\n")
    _, method, languages, steps, validation, score, changed, remark = found["pl/scored"]
    assert (method, languages, steps, remark) == ("flare", "en → pl", "3", "")
    assert validation.endswith(" at 3") and score.startswith("accuracy 0.") and changed.endswith(" ago")
    assert found["pl/stopped"][3] == "3 of 3" and found["pl/planned"][3] == "0 of 7"
    assert found["pl/trained"][5] == found["pl/other-adapter"][5] == "-"
    assert found["pl/other-adapter"][-1] == "its scores belong to another adapter"
    assert f"process {os.getpid()} on host " in found["held"][-1] and found["held"][5] == score
    for name in ("log", "config", "metrics"):
        assert f"no-{name}" in found[f"pl/no-{name}"][-1], "the line names the file"


def test_status_of_one_run_and_of_none(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(runs / "pl/scored")]) == 0
    assert "1 runs: 1 scored" in capsys.readouterr().out
    assert main(["status", str(tmp_path)]) == 1
    assert "no runs below" in capsys.readouterr().err


def test_a_lock_whose_holder_is_gone_holds_nothing(runs: Path, tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    assert holder_of(lock) is None
    held = (runs / "held/.lock").read_text()
    lock.write_text(held)
    holder = holder_of(lock)
    assert holder is not None and holder[0].pid == os.getpid() and holder[1] < 60
    lock.write_text(held.replace('"started": "', '"started": "9'))
    assert holder_of(lock) is None
