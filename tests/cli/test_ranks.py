"""`--ranks`: what the ranks run on, what they are given, and how their ends become this command's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flare_ds.cli import _parse, main, ranks
from flare_ds.cli.ranks import devices_for
from flare_ds.exceptions import FlareError, HostError
from tests.distributed import REPOSITORY, inherited
from tests.toy import toy_settings, write_config

# Stands where the ranks look for flare_ds: it writes what it was given, waits for a signal, and is killed then.
RANK = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
with open(f"{os.environ['LOCAL_RANK']}.part", "w") as file:
    json.dump([sys.argv[1:], dict(os.environ)], file)
os.rename(file.name, file.name.replace("part", "json"))
if os.environ["LOCAL_RANK"] == os.environ.get("FAILS"):
    sys.exit(3)
time.sleep(150)
"""
START = "import sys; from flare_ds.cli import main; sys.exit(main(sys.argv[1:]))"


def start(directory: Path, *words: str) -> subprocess.Popen:
    """A command with two ranks, which are told here what they are given."""
    (directory / "flare_ds").mkdir()
    (directory / "flare_ds/__init__.py").touch()
    (directory / "flare_ds/__main__.py").write_text(RANK)
    environment = {**inherited(), "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY)}
    del environment["OMP_NUM_THREADS"]
    command = [sys.executable, "-P", "-c", START, "lm-eval", "--ranks", "2", *words]
    process = subprocess.Popen(command, cwd=directory, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while len(list(directory.glob("?.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    return process


def test_ranks_share_the_cores_and_one_that_a_signal_ends_is_no_success(tmp_path: Path) -> None:
    """As the kernel ends one where memory is short; only the command is signalled, and tells the ranks."""
    process = start(tmp_path, "--model", "flare_ds", "a b")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=100)[1]
    assert process.returncode == 128 + signal.SIGKILL and "a rank was ended by signal 9 (Killed)" in said
    assert "2 ranks on the CPU" in said
    for rank in ("0", "1"):
        words, given = json.loads((tmp_path / f"{rank}.json").read_text())
        assert words == ["lm-eval", "--model", "flare_ds", "a b"]
        assert (given["RANK"], given["WORLD_SIZE"], given["MASTER_ADDR"]) == (rank, "2", "127.0.0.1")
        assert int(given["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
        assert given["DS_ACCELERATOR"] == "cpu" and sys.executable.startswith(given["PATH"].split(":")[0])


def test_a_rank_that_fails_ends_the_others_and_its_status_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have some seconds to end by themselves; how they end then is not what went wrong."""
    monkeypatch.setenv("FAILS", "1")
    process = start(tmp_path)
    said = process.communicate(timeout=100)[1]
    assert process.returncode == 3 and "a rank was ended" not in said


def test_ranks_of_which_one_cannot_be_started_all_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a user may have no more processes; those that live would wait an hour for it."""
    started: list[subprocess.Popen] = []

    def start(words: object, environment: object, before: list[subprocess.Popen]) -> subprocess.Popen:
        if before:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        group = subprocess.Popen(["sleep", "150"], process_group=0)
        started.append(group)
        return group

    monkeypatch.setattr(ranks, "_start", start)
    with pytest.raises(HostError, match="cannot start all of 2 ranks: Resource temporarily unavailable"):
        ranks._launch(["train"], ranks.Devices(("0", "1"), {}, ""))
    assert started[0].poll() == -signal.SIGTERM


def test_a_command_that_is_killed_leaves_no_ranks(tmp_path: Path) -> None:
    process = start(tmp_path)
    process.kill()
    process.communicate(timeout=100)  # returns when nobody holds the other end of the pipe any more


@pytest.mark.parametrize(
    ("wanted", "environ", "visible", "names", "told"),
    [
        (2, {}, 8, ("0", "1"), "using 2 of 8 GPUs (0, 1)"),
        ("all", {"CUDA_VISIBLE_DEVICES": "6, 7"}, 2, ("6", "7"), "using 2 of 2 GPUs (6, 7)"),
        (1, {"CUDA_VISIBLE_DEVICES": "GPU-1f,GPU-2e", "DS_ACCELERATOR": "cuda"}, 2, ("GPU-1f",), "using 1 of 2 GPUs"),
        (3, {"DS_ACCELERATOR": "cpu"}, 8, ("0", "1", "2"), "3 ranks on the CPU"),
        (2, {"CUDA_VISIBLE_DEVICES": ""}, 0, ("0", "1"), "no GPU is visible: 2 ranks on the CPU"),
    ],
)
def test_what_ranks_run_on(
    wanted: int | str, environ: dict[str, str], visible: int, names: tuple[str, ...], told: str
) -> None:
    devices = devices_for(wanted, environ, lambda: visible)
    assert devices.names == names and devices.told.startswith(told)
    assert devices.environment["DS_ACCELERATOR"] == ("cuda" if "using" in told else "cpu"), "no rank chooses for itself"
    own = devices_for(wanted, environ | {"OMP_NUM_THREADS": "7"}, lambda: visible)
    assert own.environment["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize("ranks", [[], ["--ranks", "2"]])
def test_how_memory_is_allocated_is_the_users_word(ranks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same for one process and for ranks, which have this one's environment."""
    name, later = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"
    for given, expected in (({}, "expandable_segments:True"), ({name: "a:1"}, "a:1"), ({later: "a:1"}, None)):
        for variable in (name, later):
            monkeypatch.delenv(variable, raising=False)
        for variable, value in given.items():
            monkeypatch.setenv(variable, value)
        assert main(["train", "nowhere.yaml", *ranks]) == 1
        assert os.environ.get(name) == expected


@pytest.mark.parametrize(
    ("wanted", "environ", "visible", "problem"),
    [
        (3, {}, 2, "--ranks 3, but 2 GPUs are visible here"),
        ("all", {}, 0, "no GPU is visible: --ranks all starts one rank per GPU"),
        ("all", {"DS_ACCELERATOR": "cpu"}, 2, "--ranks all starts one rank per GPU"),
        (1, {"DS_ACCELERATOR": "cuda"}, 0, "DS_ACCELERATOR=cuda, but no GPU is visible"),
        (1, {"DS_ACCELERATOR": "xpu"}, 0, "DS_ACCELERATOR=xpu"),
    ],
)
def test_what_ranks_cannot_run_on(wanted: int | str, environ: dict[str, str], visible: int, problem: str) -> None:
    with pytest.raises(FlareError) as refused:
        devices_for(wanted, environ, lambda: visible)
    assert problem in refused.value.problem and refused.value.fix


def test_what_is_told_before_any_rank_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)  # a test that trained in this process was rank 0 of 1
    config = str(write_config(toy_settings(tmp_path)))
    for verb in (["train"], ["evaluate"], ["predict", "--target", "x"], ["stage1", "--output", "x"]):
        assert main([*verb, config, "train.steps=0", "--ranks", "2"]) == 1
        assert "train.steps=0" in capsys.readouterr().err
    assert main(["predict", config, "--interactive", "--ranks", "1"]) == 1
    assert "--interactive with --ranks 1: questions are for one process" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "here")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert main(["train", config, "--ranks", "2"]) == 1
    assert "a launcher has started this process: RANK=1 WORLD_SIZE=2" in capsys.readouterr().err


def test_verbs_that_know_nothing_of_ranks_take_none() -> None:
    for verb in (["train", "c"], ["lm-eval"]):
        assert _parse([*verb, "--ranks=all"]).ranks == "all" and _parse(verb).ranks is None
    for wrong in (["prepare", "c", "--ranks", "2"], ["train", "c", "--ranks", "0"], ["lm-eval", "--ranks", "some"]):
        with pytest.raises(SystemExit):
            _parse(wrong)
