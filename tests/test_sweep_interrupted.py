"""A sweep that is interrupted, killed or started twice, with a stand-in for the commands."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flare_ds.exceptions import HostError
from flare_ds.processes import log_reason, log_tail, run_logged
from flare_ds.sweep.local import sweep
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


def test_told_to_end_it_waits_for_what_it_started(bench):
    """By kill, docker stop or a scheduler, which may tell it twice."""
    process = bench.start("train pl/lora-seed2")
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    console, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and not any(map(alive, bench.hanging()))
    assert console.splitlines()[-1].endswith(f"flare-ds sweep {bench.path}")
    continues(bench, "train pl/lora-seed2")


@pytest.mark.parametrize("hang", ["evaluate stage1", "train pl/lora-seed2"])
def test_after_kill_9_nothing_is_left_running_and_the_same_command_continues(bench, hang):
    process = bench.start(hang)
    pids = bench.hanging()
    assert all(map(alive, pids))
    process.kill()
    process.communicate()
    wait_for(lambda: not any(map(alive, pids)))
    continues(bench, hang)


def test_killed_five_times_it_ends_in_the_same_report(bench):
    """Two languages, three methods, two seeds; nothing that was finished is done again."""
    bench.settings["grid"]["languages"] = ["pl", "es"]
    bench.write()
    assert sweep(bench.path) == 0
    undisturbed, calls = (bench.out / "report.md").read_bytes(), bench.calls()
    shutil.rmtree(bench.out)
    kills = ["prepare es/zero_shot-seed1", "stage1 stage1", "train pl/flare-seed1", "evaluate es/lora-seed1"]
    for hang in [*kills, "evaluate es/flare-seed2"]:
        process = bench.start(hang)
        pids = bench.hanging()
        process.kill()
        process.communicate()
        wait_for(lambda pids=pids: not any(map(alive, pids)))
        (bench.directory / "hanging.txt").unlink()
    assert sweep(bench.path) == 0
    assert (bench.out / "report.md").read_bytes() == undisturbed
    again = [call for call in bench.calls() if not call.startswith("prepare")]
    twice = [call for call in again if again.count(call) > 1]
    assert set(again) == {call for call in calls if not call.startswith("prepare")}
    assert len(set(twice)) == len(twice) // 2 == 4, "those that were killed, once more"


def continues(bench: Bench, hang: str) -> None:
    """The same command does the interrupted stage again, and no finished one."""
    everything = [*PREPARED, *stage1_calls(bench), *expected_calls()]
    commands = (hang, hang.replace("evaluate", "train"))  # a cell is evaluated by the command that trains it
    interrupted = next(call for call in everything if call.startswith(commands))
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

    def interrupt(chunk):
        pids.append(int(chunk))
        raise KeyboardInterrupt

    monkeypatch.setattr("flare_ds.processes._show", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_logged([os.path.realpath("/proc/self/exe"), "-c", f"{script}; time.sleep(600)"], log)
    assert not alive(pids[0])


def test_a_command_that_is_ended_may_save_first(tmp_path, monkeypatch):
    """It is asked as a scheduler asks, on which a run saves its state, before Ctrl-C, which loses what is not saved."""
    script = "trap 'touch lost; exit' INT; trap 'touch saved; exit' TERM; echo ready; while :; do sleep 0.05; done"

    def interrupt(chunk):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flare_ds.processes._show", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_logged(["env", "--default-signal=INT", "bash", "-c", script], tmp_path / "log.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "saved"]


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


def test_a_log_that_was_removed_or_emptied_meanwhile_says_so(tmp_path):
    log = tmp_path / "log.txt"
    for _ in range(2):
        assert log_reason(log) == log_tail(log) == f"nothing is left in {log}"
        log.touch()


def test_a_command_that_cannot_be_guarded_does_not_run_on(tmp_path, monkeypatch):
    started = []

    def no_process_left(leader):
        started.append(leader.pid)
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("flare_ds.processes.guarded", no_process_left)
    with pytest.raises(HostError, match="Resource temporarily unavailable"):
        run_logged(["sleep", "600"], tmp_path / "log.txt")
    assert started and not alive(started[0])


def test_what_a_command_leaves_behind_is_ended(tmp_path, monkeypatch):
    """A child that holds the output, and one that has closed it: neither is waited for without end, nor runs on."""
    monkeypatch.setattr("flare_ds.processes._LINGER_S", 0.3)
    log = tmp_path / "log.txt"
    script = "sleep 600 & echo $!; sleep 600 >/dev/null 2>&1 & echo $!; exit 3"
    assert run_logged(["sh", "-c", script], log) == 3
    children = [int(word) for word in log.read_text().splitlines()[1:]]
    assert len(children) == 2
    wait_for(lambda: not any(map(alive, children)))


def test_a_console_that_is_gone_stops_nothing(tmp_path):
    """As in `flare-ds sweep sweep.yaml | head -1`."""
    code = "import sys; from pathlib import Path; from flare_ds.processes import run_logged, say\n"
    code += "run_logged(['sh', '-c', 'seq 100000; sleep 0.2; echo last'], Path(sys.argv[1])); say('x'); say('y')"
    command = [sys.executable, "-c", code, str(tmp_path / "log.txt")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 0, process.stderr.read()
    assert (tmp_path / "log.txt").read_text().endswith("\nlast\n")


def test_a_launcher_that_cannot_be_executed_is_named(tmp_path):
    launcher = tmp_path / "launcher"
    launcher.write_text("#!/no/such/interpreter\n")
    launcher.chmod(0o755)
    with pytest.raises(HostError, match=f"cannot start '{launcher}': No such file"):
        run_logged([str(launcher)], tmp_path / "log.txt")
