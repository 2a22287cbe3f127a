"""quickstart.sh itself, on a small local model and data through its documented options: killed, continued, skipped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed import inherited
from tests.toy import REPOSITORY, write_data, write_model

SETTINGS = [
    "base.train.steps=4",
    "base.train.learning_rate=0.01",
    "base.train.validate_every=2",
    "base.train.save_every=2",
    "base.task.validation_rows=16",
    "base.task.train_rows=64",
    "base.task.test_rows=40",
    "stage1.train.steps=40",  # so that the merged base is better than the untuned one
    "stage1.train.validate_every=20",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quickstart")
    write_model(root / "model")
    write_data(root / "data", rows=300, languages=("en", "pl"))
    return root


def start(root: Path, *settings: str) -> subprocess.Popen:
    command = [REPOSITORY / "launchers/quickstart.sh", "--no-install", "--model", root / "model"]
    command += ["--data", root / "data", "--languages", "pl", "--out", root / "runs"]
    command += [f"base.cache_dir={root / 'cache'}", *SETTINGS, *settings]
    environment = {**inherited(), "PYTHON": sys.executable, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    log = (root / "log.txt").open("w")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def finish(process: subprocess.Popen, root: Path, expect: int = 0) -> str:
    code = process.wait(timeout=800)
    output = (root / "log.txt").read_text()
    assert code == expect, output[-4000:]
    return output


def test_killed_continued_then_skipped(root: Path) -> None:
    first = start(root)
    deadline = time.monotonic() + 600
    while not (root / "runs/base").is_dir():  # stage 1 is trained and merged
        assert first.poll() is None and time.monotonic() < deadline, (root / "log.txt").read_text()[-4000:]
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()

    output = finish(start(root), root)
    assert "stage1" in output and "skipped (finished)" in output
    for method in ("zero_shot", "lora", "flare", "source_prefix"):
        metrics = json.loads((root / f"runs/pl/{method}-seed1/metrics.json").read_text())
        assert metrics["num_examples"] == 40 and metrics["method"] == method
        assert method in output
    assert "method − lora" in output
    assert "tensorboard --logdir" in output
    assert (root / "runs/learning_curves.png").stat().st_size > 1000
    assert list((root / "runs/pl/flare-seed1").glob("events.out.tfevents.*"))

    again = finish(start(root), root)
    assert again.count("skipped (finished)") > output.count("skipped (finished)")
    assert " done in " not in again


def test_an_unknown_language_is_refused_before_any_stage(root: Path) -> None:
    output = finish(start(root, "grid.languages=[plx]", f"out={root / 'other'}"), root, expect=1)
    assert "'plx'" in output and "did you mean 'pl'" in output
    assert "stage1" not in output


def test_a_changed_setting_is_refused_not_mixed(root: Path) -> None:
    output = finish(start(root, "base.train.learning_rate=0.5"), root, expect=1)
    assert "learning_rate" in output and "fix:" in output


def test_misaligned_sides_name_the_row(root: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "data", rows=50, languages=("en", "pl"))
    path = tmp_path / "data/products_sentence_en.json"
    content = json.loads(path.read_text())
    del content["examples"][7:]
    path.write_text(json.dumps(content))
    output = finish(start(root, f"base.task.data_dir={tmp_path / 'data'}", f"out={tmp_path / 'runs'}"), root, expect=1)
    assert "products-7" in output and "fix:" in output
