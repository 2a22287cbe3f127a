"""What a run shows where it is watched, read back by each tracker's own reader."""

import importlib.util
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flare_ds.config import Config
from flare_ds.exceptions import ConfigError
from flare_ds.processes import free_port
from flare_ds.tracking.figures import of_step, of_test, of_validation
from flare_ds.tracking.picture import share_picture
from flare_ds.tracking.trackers import Trackers, check_trackers
from tests.toy import toy_settings
from tests.tracking.stand_ins import Mlflow, Wandb

STEP = {
    "loss": 1.5,
    "tokens": 60,
    "padded_tokens": 80,
    "flops": 4e9,
    "learning_rate": 1e-3,
    "grad_norm": 2.0,
    "examples": 6,
    "step_seconds": 0.5,
    "data_seconds": 0.1,
}


def config_of(root: Path, **tracking: Any) -> Config:
    return Config.model_validate({**toy_settings(root), "tracking": tracking})


def logged(config: Config, *, first_step: int = 0) -> None:
    """Two steps, a validation and a picture."""
    trackers = Trackers(config, first_step=first_step)
    for step in (first_step + 1, first_step + 2):
        trackers.scalars(of_step(STEP, ranks=1), step)
    trackers.scalars(of_validation(0.7, {"accuracy": 0.7, "loss": 0.9}, "pl"), first_step + 2)
    trackers.picture("source/share_by_layer", share_picture([[0.1, 0.9]]), first_step + 2)
    trackers.close()
    tested = Trackers(config)
    tested.scalars(of_test(0.6, {"accuracy": 0.6, "loss": 1.0}), first_step + 2)
    tested.text("predictions", "| <bos> a |", first_step + 2)
    tested.close()


def test_a_step_says_its_speed() -> None:
    shown = of_step(STEP, ranks=1)
    assert shown["speed/tokens_per_second"] == 120
    assert shown["speed/examples_per_second"] == 12
    assert shown["speed/tflops_4N"] == pytest.approx(0.008)
    assert shown["step/padding"] == 0.25
    assert shown["step/skipped"] == 0
    assert (shown["time/step"], shown["time/data"]) == (0.5, 0.1)
    assert shown["memory/peak_gb"] > 0.01
    assert "step/gathers" not in shown, "this rank holds the base"
    assert "step/gradient_norm" not in of_step({**STEP, "grad_norm": None, "skipped_rows": ["a"]}, ranks=1)


def test_a_step_says_what_it_gathered() -> None:
    shown = of_step({**STEP, "gathers": 24.0, "gathered_bytes": 3e9}, ranks=2)
    assert (shown["step/gathers"], shown["step/gathered_gb"]) == (24, 3)


def test_the_picture_has_a_row_a_module_and_a_column_a_validation() -> None:
    image_HWC = share_picture([[0.0, 1.0, 0.5], [0.5, float("nan"), 7.0]])
    assert image_HWC.shape == (3 * 8, 2 * 24, 3)
    cells_MV = image_HWC[::8, ::24].astype(int).sum(2)
    dark, middle, bright = cells_MV[0, 0], cells_MV[2, 0], cells_MV[1, 0]
    assert dark < middle < bright
    assert cells_MV[0, 1] == middle and cells_MV[1, 1] == dark and cells_MV[2, 1] == bright


@pytest.fixture
def board(tmp_path: Path) -> EventAccumulator:
    config = config_of(tmp_path)
    logged(config)
    board = EventAccumulator(config.run_dir)
    return board.Reload()


def test_tensorboard_has_curves_texts_and_a_picture(board: EventAccumulator) -> None:
    assert [event.step for event in board.Scalars("loss/train")] == [1, 2]
    values = {name: board.Scalars(name)[-1].value for name in ("score/test", "score/validation", "by_language/pl/loss")}
    assert values == pytest.approx({"score/test": 0.6, "score/validation": 0.7, "by_language/pl/loss": 0.9})
    assert board.Images("source/share_by_layer")[0].height == 16
    (text,) = board.Tensors("config/text_summary")
    assert b"target_modules" in text.tensor_proto.string_val[0]


def test_a_run_that_goes_on_forgets_what_it_does_again(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    logged(config)
    logged(config, first_step=1)
    board = EventAccumulator(config.run_dir).Reload()
    assert [event.step for event in board.Scalars("loss/train")] == [1, 2, 3]


def test_scores_of_an_earlier_step_than_the_last_take_no_curve_behind_it_away(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    logged(config)
    tested = Trackers(config)
    tested.scalars(of_test(0.6, {"accuracy": 0.6}), 1)
    tested.close()
    board = EventAccumulator(config.run_dir).Reload()
    assert [event.step for event in board.Scalars("loss/train")] == [1, 2]
    assert [event.step for event in board.Scalars("score/validation")] == [2]


def test_nothing_is_written_where_nobody_watches(tmp_path: Path) -> None:
    config = config_of(tmp_path, to=[])
    logged(config)
    assert not Path(config.run_dir).exists()


def test_where_a_run_is_watched_changes_no_result(tmp_path: Path) -> None:
    assert config_of(tmp_path, to=[]).deciding() == config_of(tmp_path, project="other").deciding()


def test_a_tracker_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tracking.to names wandb, which is not installed"):
        check_trackers(config_of(tmp_path, to=["wandb"]))


def test_a_tracker_that_has_only_a_name_is_no_other_one(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    unknown = config.model_copy(update={"tracking": config.tracking.model_copy(update={"to": ("comet",)})})
    for ask in (check_trackers, Trackers):
        with pytest.raises((KeyError, ConfigError), match="comet"):
            ask(unknown)


def asked(port: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://localhost:{port}/data/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    for method, seed in (("lora", 1), ("flare", 2)):
        settings = {**toy_settings(tmp_path), "method": method, "run_dir": str(tmp_path / f"runs/pl/{method}")}
        logged(Config.model_validate({**settings, "train": {**settings["train"], "seed": seed}}))
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path / "runs"), "--port", port]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "http://" in line:
                break
        yield port
        process.terminate()


def test_its_server_compares_the_runs(server: str) -> None:
    deadline = time.monotonic() + 60
    while set(asked(server, "runs")) != {"pl/lora", "pl/flare"}:  # it reads in the background
        assert time.monotonic() < deadline, asked(server, "runs")
        time.sleep(0.2)
    tags = asked(server, "plugin/scalars/tags")
    assert {"loss/train", "score/validation", "score/test"} <= set(tags["pl/flare"])
    experiment = asked(server, "plugin/hparams/experiment", {"experimentName": ""})
    assert {info["name"] for info in experiment["hparamInfos"]} >= {"cell.method", "setting.adapter.r"}
    wanted = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_RUNNING", "STATUS_UNKNOWN"],
        "colParams": [{"metric": {"group": "", "tag": "score/test"}, "order": "ORDER_DESC"}],
        "startIndex": 0,
        "sliceSize": 10,
    }
    groups = asked(server, "plugin/hparams/session_groups", wanted)["sessionGroups"]
    found = {group["hparams"]["cell.method"]: group["metricValues"] for group in groups}
    assert set(found) == {"lora", "flare"}
    tests = [value["value"] for values in found.values() for value in values if value["name"]["tag"] == "score/test"]
    assert tests == pytest.approx([0.6, 0.6])
    layout = asked(server, "plugin/custom_scalars/layout")
    assert [category["title"] for category in layout["category"]] == ["pl"]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delitem(sys.modules, "flare_ds.tracking.on_wandb", raising=False)
    return module


def test_wandb_drops_nothing_of_a_run_that_goes_on_or_is_scored_later(tmp_path: Path, wandb: Wandb) -> None:
    """The best adapter, whose test scores these are, is of an earlier step than the last."""
    config = config_of(tmp_path, to=["wandb"])
    logged(config)
    logged(config, first_step=1)
    ((name, rows),) = wandb.runs.items()
    assert wandb.metrics[name] == {"step": None, "*": "step"}
    steps = {key: [row["step"] for _, row in rows if key in row] for key in ("loss/train", "score/test", "predictions")}
    assert steps == {"loss/train": [1, 2, 2, 3], "score/test": [2, 3], "predictions": [2, 3]}
    earlier = Trackers(config)
    earlier.scalars(of_test(0.7, {"accuracy": 0.7}), 1)
    assert rows[-1][1] == {"score/test": 0.7, "score/test_accuracy": 0.7, "step": 1}


def test_a_run_that_was_deleted_is_another_one_and_a_moved_one_the_same(tmp_path: Path, wandb: Wandb) -> None:
    """Nor do two containers, whose runs lie at one path, write to one run of the service."""
    config = config_of(tmp_path, to=["wandb"])
    logged(config)
    moved = tmp_path / "moved"
    Path(config.run_dir).rename(moved)
    logged(config)
    logged(config.model_copy(update={"run_dir": str(moved)}), first_step=1)
    assert [sum("loss/train" in row for _, row in rows) for rows in wandb.runs.values()] == [4, 2]


def test_a_service_that_is_gone_costs_no_step_and_is_asked_no_more(
    tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path, to=["tensorboard", "wandb"])
    trackers = Trackers(config, first_step=0)
    asked = []

    def gone(*_: object, **__: object) -> None:
        asked.append(1)
        raise ConnectionError("no route")

    monkeypatch.setattr(trackers.all[1], "scalars", gone)
    for step in (1, 2):
        trackers.scalars({"loss/train": 0.5}, step)
    trackers.close()
    said = capsys.readouterr().err
    assert len(asked) == 1 and said.count("Wandb failed and is off for") == 1 and "no route" in said
    board = EventAccumulator(config.run_dir).Reload()
    assert [event.step for event in board.Scalars("loss/train")] == [1, 2]


def test_what_cannot_be_written_here_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trackers = Trackers(config_of(tmp_path), first_step=0)
    monkeypatch.setattr(trackers.all[0], "scalars", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trackers.scalars({"loss/train": 0.5}, 1)


def test_wandb_shows_a_text_as_it_is(tmp_path: Path, wandb: Wandb) -> None:
    logged(config_of(tmp_path, to=["wandb"]))
    (rows,) = wandb.runs.values()
    assert [row["predictions"] for _, row in rows if "predictions" in row] == ["<pre>| &lt;bos&gt; a |</pre>"]


def test_mlflow_jobs_that_begin_at_once_share_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory whose name holds what ends a text in a filter."""
    server = Mlflow()
    for name, module in server.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "flare_ds.tracking.on_mlflow", raising=False)
    for seed in (1, 2):
        logged(config_of(tmp_path / f"it's {seed}", to=["mlflow"]))
    assert server.experiments == {"flare_ds": "7"}
    assert [len(run["metrics"]) for run in server.runs.values()] == [len(server.runs["0"]["metrics"])] * 2
    names = [[metric[0] for metric in run["metrics"]] for run in server.runs.values()]
    assert all(of_one.count("loss/train") == 2 and of_one.count("score/test") == 1 for of_one in names)


def test_wandb_gets_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.delitem(sys.modules, "flare_ds.tracking.on_wandb", raising=False)  # with a stand-in's functions
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = config_of(tmp_path, to=["wandb"])
    logged(config)
    content, patience = b"", time.monotonic() + 60
    names = (b"loss/train", b"score/test", b"source/share_by_layer")
    while not all(name in content for name in names) and time.monotonic() < patience:
        # A process of W&B's own writes them, and may do so a little after it has said that it is done.
        time.sleep(0.1)
        content = b"".join(file.read_bytes() for file in Path(config.run_dir).glob("wandb/offline-run-*/run-*.wandb"))
    assert [name for name in names if name not in content] == []


def test_mlflow_gets_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.delitem(sys.modules, "flare_ds.tracking.on_mlflow", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config = config_of(tmp_path, to=["mlflow"])
    logged(config)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("flare_ds")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["cell.method"] == config.method
    assert run.data.metrics["score/test"] == 0.6
    assert len(client.get_metric_history(run.info.run_id, "loss/train")) == 2
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"images", "predictions-2.md"}
