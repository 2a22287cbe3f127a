"""Stage 1 as one command on real ranks: the merged base is as good as its adapter, or there is none."""

import json
from pathlib import Path

import pytest

from flare_ds.exceptions import ConfigError
from flare_ds.settings import load_config
from flare_ds.training.stage1 import run_stage1
from tests.distributed import run_ranks
from tests.toy import toy_settings, write_config

ROWS = 30  # of 40 for validation


def english(root: Path, name: str, **train: object) -> dict:
    options = {"steps": 40, "batch_size": 32, "micro_batch_size": 16, "validate_every": 20, "save_every": 20} | train
    settings = toy_settings(root, method="lora", name=name, validate_rows=ROWS, **options)
    settings["task"] |= {"target_language": "en"}
    return settings


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def modified(root: Path) -> dict[Path, int]:
    """When the trained run and its base were written."""
    files = [root / "english/training.json", *(root / "tuned").iterdir()]
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a stage 1 has made the base root/tuned."""
    root = tmp_path_factory.mktemp("stage1")
    config = write_config(english(root, "english"))
    printed, _ = run_ranks(["flare_ds", "stage1", str(config), "--output", str(root / "tuned")], 2)
    (root / "printed").write_text(printed)
    return root


@pytest.fixture(scope="module")
def told(root: Path) -> dict[str, str]:
    """What further calls say, by the name of the call."""
    before = modified(root)
    (root / ".again.unchecked").mkdir()  # of a call that was killed while it merged
    idle = write_config(english(root, "idle", steps=1, learning_rate=1e-9))
    run_ranks(["tests.training.stage1_worker", str(root / "english.yaml"), str(idle)], 1)
    assert modified(root) == before
    return read_json(root / "told.json")


def test_the_merged_base_alone_is_as_good_as_its_adapter(root: Path) -> None:
    found, training = read_json(root / "english/stage1.json"), read_json(root / "english/training.json")
    assert found["untuned"] == training["start_validation_score"] < 0.6
    assert found["tuned"] == training["best_validation_score"] > 0.9
    assert found["merged"] == pytest.approx(found["tuned"], abs=1 / ROWS + 1e-6)
    assert found["validation_examples"] == ROWS
    assert f"tuned: validation accuracy {found['merged']:.4f}" in (root / "printed").read_text()
    assert read_json(root / "tuned/merged_from.json")["run"] == str(root / "english")


def test_what_is_done_is_not_done_again(root: Path, told: dict[str, str]) -> None:
    merged = read_json(root / "english/stage1.json")["merged"]
    assert told["finished"].startswith("Stage1(") and f"merged={merged}" in told["finished"]
    assert told["again"].startswith("Stage1(") and (root / "moved/model.safetensors").exists()
    assert f"output='{root / 'moved'}'" in told["moved"], "known by its contents, wherever it lies"
    assert not (root / ".again.unchecked").exists()
    assert "exists already" in told["taken"] and "choose another --output" in told["taken"]


@pytest.mark.parametrize("fault", ["merge", "load"])
def test_a_merge_or_a_load_that_did_nothing_is_refused(root: Path, told: dict[str, str], fault: str) -> None:
    training = read_json(root / "english/training.json")
    untuned, best = training["start_validation_score"], training["best_validation_score"]
    assert f"accuracy {untuned:.4f} on {ROWS} validation examples and the untuned base {untuned:.4f}" in told[fault]
    assert f"the best adapter: {best:.4f}" in told[fault]
    assert "the adapter was lost on its way to the base" in told[fault]
    assert not list(root.glob(f"*no-{fault}*"))


def test_training_that_gained_nothing_is_refused(root: Path, told: dict[str, str]) -> None:
    assert "nothing was gained" in told["idle"] and "train longer (train.steps)" in told["idle"]
    assert not list(root.glob("*no-idle*"))
    assert not (root / "idle/stage1.json").exists()


@pytest.mark.parametrize(
    ("method", "language", "problem"),
    [
        ("lora", "pl", "task.target_language='pl'"),
        ("zero_shot", "en", "method=zero_shot"),
        ("flare_mt", "en", "method=flare_mt"),
    ],
)
def test_only_a_task_adapter_is_trained(tmp_path: Path, method: str, language: str, problem: str) -> None:
    settings = toy_settings(tmp_path, method=method)
    settings["task"] |= {"target_language": language}
    settings["source"] = {"mt_encoder": "any"}
    with pytest.raises(ConfigError, match=problem):
        run_stage1(load_config(write_config(settings)), tmp_path / "tuned")
