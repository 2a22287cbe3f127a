"""A sweep that is interrupted, killed or started twice, with a stand-in for the commands."""

import os
import signal
from pathlib import Path

import pytest

from flare_ds.exceptions import HostError
from flare_ds.processes import log_tail, run_logged
from flare_ds.sweep import sweep
from tests.sweep_bench import PREPARED, Bench, expected_calls, stage1_calls, wait_for


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("hang", ["stage1 stage1", "evaluate pl/lora-seed2"])
def test_ctrl_c_ends_the_command_and_the_same_command_continues(bench, hang):
    process = bench.start(hang)
    process.send_signal(signal.SIGINT)
    console, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert console.splitlines()[-1].endswith(f"flare-ds sweep {bench.path}")
    wait_for(lambda: not any(map(alive, bench.hanging())))
    continues(bench, hang)


@pytest.mark.parametrize("hang", ["evaluate stage1", "train pl/lora-seed2"])
def test_after_kill_9_nothing_is_left_running_and_the_same_command_continues(bench, hang):
    process = bench.start(hang)
    pids = bench.hanging()
    assert all(map(alive, pids))
    process.kill()
    process.communicate()
    wait_for(lambda: not any(map(alive, pids)))
    continues(bench, hang)


def continues(bench: Bench, hang: str) -> None:
    """The same command does the interrupted stage again, and no finished one."""
    everything = [*PREPARED, *stage1_calls(bench), *expected_calls()]
    interrupted = next(call for call in everything if call.startswith(hang))
    assert bench.calls()[-1] == interrupted
    assert sweep(bench.path) == 0
    calls = [call for call in bench.calls() if not call.startswith("prepare")]
    assert calls == everything[everything.index(interrupted) :]


def test_two_sweeps_never_write_the_same_directory(bench):
    process = bench.start("stage1 stage1")
    with pytest.raises(HostError, match=f"process {process.pid}"):
        sweep(bench.path)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def test_a_command_that_ignores_the_signals_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("flare_ds.processes._PATIENCE_S", 0.2)
    script = (
        "import os, signal, time; [signal.signal(s, signal.SIG_IGN) for s in (2, 15)]; print(os.getpid(), flush=True)"
    )
    log = tmp_path / "log.txt"
    pids = []

    def interrupt(chunk, file):
        pids.append(int(chunk))
        raise KeyboardInterrupt

    monkeypatch.setattr("flare_ds.processes._show", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_logged([os.path.realpath("/proc/self/exe"), "-c", f"{script}; time.sleep(600)"], log)
    assert not alive(pids[0])


def test_the_tail_of_a_log_shows_what_we_said_before_the_launcher_said_more(tmp_path):
    log = tmp_path / "log.txt"
    ours = ["[default0]:flare-ds: model.base='x' is not a directory", "  fix: check the path"]
    torchrun = [f"ChildFailedError line {number}" for number in range(40)]
    earlier = ["$ flare-ds prepare", "flare-ds: an older message"]
    log.write_text("\n".join([*earlier, "$ torchrun", *ours, *torchrun]))
    shown = log_tail(log).splitlines()
    assert shown[:2] == ours and shown[-1] == torchrun[-1] and "..." in shown and len(shown) == 21
    log.write_text("\n".join([*earlier, "$ torchrun", *torchrun]))
    assert log_tail(log).splitlines() == torchrun[-20:], "what an earlier command said is no cause"


def test_the_tail_of_a_log_shows_a_progress_bar_once(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("first\nstep 1\rstep 2\rstep 3\n\nerror: no\n")
    assert log_tail(log, 2) == "step 3\nerror: no"
