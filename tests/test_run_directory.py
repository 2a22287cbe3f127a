"""Whole runs through the command line whose directories move, are shared or refused: real processes, one small run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import equal

from flare_ds.settings import load_config
from tests.distributed import REPOSITORY, rank_environment, run_ranks, start_ranks
from tests.toy import toy_settings, write_config, write_model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a run that is trained and scored; its raw data is gone since."""
    root = tmp_path_factory.mktemp("project")
    config = str(write_config(toy_settings(root, steps=4, save_every=2, validate_every=2)))
    run_ranks(["flare_ds", "train", config], 1)
    run_ranks(["flare_ds", "evaluate", config], 1)
    shutil.rmtree(root / "data")
    return root


def contents(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def flare_ds(*words: str, cwd: Path) -> str:
    """One command in some working directory; its output, or an assertion that it went well."""
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    environment |= {"PYTHONPATH": str(REPOSITORY), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "flare_ds", *words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_an_evaluation_writes_scores_and_nothing_else(root: Path, tmp_path: Path) -> None:
    """Of a copy, from another working directory, with other settings: they stand in metrics.json alone."""
    shutil.copytree(root / "run", tmp_path / "copy")
    before = contents(tmp_path / "copy")
    flare_ds("evaluate", "copy", "evaluate.batch_size=3", cwd=tmp_path)
    after = contents(tmp_path / "copy")
    changed = {name for name in after if after[name] != before.get(name) and not name.startswith("events.")}
    assert changed <= {"metrics.json", "predictions.parquet", "adapter/README.md"}
    metrics = json.loads(after["metrics.json"])
    assert metrics["settings"]["evaluate"]["batch_size"] == 3
    assert metrics["adapter_sha256"] == json.loads(before["metrics.json"])["adapter_sha256"]
    assert contents(root / "run") == before, "the run it was copied from"


def test_the_config_in_a_copied_run_means_the_copy(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "run", tmp_path / "copy")
    config = load_config(tmp_path / "copy/config.yaml")
    assert config.run_dir == load_config(tmp_path / "copy").run_dir == str(tmp_path / "copy")


def test_a_moved_run_is_resumed_on_a_base_that_moved(root: Path, tmp_path: Path) -> None:
    """Half of it is to be trained yet; its base lies elsewhere, its raw data nowhere."""
    shutil.copytree(root / "run", tmp_path / "copy")
    for name in ("training.json", "metrics.json"):
        (tmp_path / "copy" / name).unlink()
    shutil.copytree(root / "model", tmp_path / "base")
    flare_ds("train", "copy", "model.base=base", cwd=tmp_path)
    assert json.loads((tmp_path / "copy/training.json").read_text())["steps"] == 4
    ours, theirs = (load_file(run / "adapter/adapter_model.safetensors") for run in (tmp_path / "copy", root / "run"))
    assert all(equal(ours[name], theirs[name]) for name in theirs)


def test_refused_commands_end_on_every_rank_and_change_no_byte(root: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "other", seed=5)
    before = contents(root / "run")
    outputs = run_ranks(["flare_ds", "train", str(root / "run"), f"model.base={tmp_path}/other"], 2, expect=1)
    assert "its contents differ" in outputs[0]
    assert contents(root / "run") == before


LATE = {
    "HostError: train.micro_batch_size=": [
        "run_dir=NEW",
        "train.micro_batch_size=1000000000000",
        "train.batch_size=1000000000000",
    ],
    "ConfigError: train.batch_tokens=3": ["run_dir=NEW", "train.batch_tokens=3"],
    "ConfigError: the source states take": [
        "run_dir=NEW",
        "source.provider=cached",
        "source.max_store_gb=1e-9",
        "adapter.pairing=input",
        "adapter.fused_modules=[q_proj,v_proj]",
    ],
    "ConfigError: adapter.target_modules names": ["run_dir=NEW", "method=lora", "adapter.target_modules=[nothing]"],
}
"""What the trainer itself refuses, of a run that has begun and of a new one, and how that is told."""


def test_what_the_trainer_refuses_changes_no_byte_either(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "run", tmp_path / "copy")
    asked = [[word.replace("NEW", str(tmp_path / "new")) for word in words] for words in LATE.values()]
    command = ["tests.refusals_worker", str(tmp_path / "copy"), *map(json.dumps, asked)]
    (output,) = run_ranks(command, 1)
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"said"')]
    for (said, words), line in zip(LATE.items(), lines, strict=True):
        assert line["said"].startswith(said), line
        assert line["same"] and line["there"] == ("run_dir=NEW" not in words)


def test_of_two_jobs_on_one_directory_one_is_refused(root: Path) -> None:
    settings = toy_settings(root, name="shared", steps=4, save_every=2, validate_every=2)
    config, lock = str(write_config(settings)), root / "shared/.lock"
    first = start_ranks(["flare_ds", "train", config], 2)
    deadline = time.monotonic() + 120
    while not (lock.exists() and lock.read_text()):  # it is made, then says who made it
        assert time.monotonic() < deadline and first[0].poll() is None
        time.sleep(0.01)
    for process in first:
        process.send_signal(signal.SIGSTOP)
    try:
        outputs = run_ranks(["flare_ds", "train", config], 2, expect=1)
    finally:
        for process in first:
            process.send_signal(signal.SIGCONT)
    assert f"process {first[0].pid} on host" in outputs[0] and "is writing the run" in outputs[0]
    assert [process.wait(timeout=300) for process in first] == [0, 0]
    assert not lock.exists()
    lines = map(json.loads, (root / "shared/train_log.jsonl").read_text().splitlines())
    steps = [line["step"] for line in lines if "source_share" not in line]
    assert steps == [0, 1, 2, 2, 3, 4, 4]


def test_nothing_needs_flock(root: Path, tmp_path: Path) -> None:
    """As on a file system that has none; the whole of a process, from joining the ranks to its scores."""
    code = "import errno, fcntl\ndef _f(*_): raise OSError(errno.ENOSYS, 'no flock')\nfcntl.flock = _f\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    shutil.copytree(root / "run", tmp_path / "copy")
    path = f"{tmp_path}{os.pathsep}{rank_environment(0, 1, '0')['PYTHONPATH']}"
    run_ranks(["flare_ds", "evaluate", str(tmp_path / "copy")], 1, PYTHONPATH=path)
