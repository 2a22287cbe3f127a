"""Locks: one holder among real processes, taken over from the dead and from nobody else; no flock anywhere."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flare_ds import locks
from flare_ds.exceptions import HostError

HOLD = """
import sys, time
from pathlib import Path
from flare_ds.exceptions import HostError
from flare_ds.locks import hold
try:
    hold(Path(sys.argv[1]), doing="does it")
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
except HostError as error:
    print(error, flush=True)
"""


def start(path: Path, seconds: float, *before: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*before, sys.executable, "-c", HOLD, str(path), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


def first_line(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(processes: list[subprocess.Popen]) -> None:
    """End whoever holds the lock, as Ctrl-C does: only when all have asked, however slow the machine is."""
    for process in processes:
        process.send_signal(signal.SIGINT)
        process.wait()


def test_of_many_processes_at_once_one_holds(tmp_path: Path) -> None:
    processes = [start(tmp_path / "lock", 60) for _ in range(6)]
    said = [first_line(process) for process in processes]
    assert said.count("held") == 1
    holder = processes[said.index("held")]
    assert sum(f"process {holder.pid} on host {socket.gethostname()} does it" in line for line in said) == 5
    end(processes)
    assert not (tmp_path / "lock").exists(), "given back at the end of the process"


def test_the_lock_of_a_killed_process_is_taken_over_by_just_one(tmp_path: Path) -> None:
    killed = start(tmp_path / "lock", 60)
    assert first_line(killed) == "held"
    with pytest.raises(HostError, match=f"process {killed.pid} on host") as error:
        locks.hold(tmp_path / "lock", doing="does it")
    assert str(tmp_path / "lock") in error.value.fix
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    processes = [start(tmp_path / "lock", 60) for _ in range(6)]
    assert [first_line(process) for process in processes].count("held") == 1
    end(processes)


def foreign(path: Path, **changed: object) -> Path:
    holder = {"host": "elsewhere", "pid": os.getpid(), "started": "1", "job": ""}
    path.write_text(json.dumps(holder | changed))
    return path


def test_a_lock_of_another_host_stands_and_names_it(tmp_path: Path) -> None:
    path = foreign(tmp_path / "lock", job="77.0")
    for minutes in (0, 14):  # a busy host, or one whose clock differs
        os.utime(path, (time.time() - 60 * minutes,) * 2)
        with pytest.raises(HostError, match=f"process {os.getpid()} on host elsewhere, job 77"):
            locks.hold(path, doing="does it")
    assert json.loads(path.read_text())["host"] == "elsewhere"


def test_a_requeued_job_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = foreign(tmp_path / "lock", job="77.0")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with pytest.raises(HostError):  # the same start of the job: another task of it, which lives
        locks.hold(path, doing="does it")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert locks.hold(path, doing="does it")
    locks.release(path)


def test_a_lock_that_nobody_touches_is_taken_over(tmp_path: Path) -> None:
    path = foreign(tmp_path / "lock")
    long_ago = time.time() - 2 * locks._DEAD_AFTER_S
    os.utime(path, (long_ago, long_ago))
    assert locks.hold(path, doing="does it")
    locks.release(path)
    assert not path.exists()


def test_who_is_the_second_to_find_a_holder_gone_finds_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = foreign(tmp_path / "lock"), locks._made
    os.utime(path, (0, 0))

    def behind_the_first(file: Path) -> bool:
        if file.name.endswith(".takeover"):
            foreign(path, host="first")
        return made(file)

    monkeypatch.setattr(locks, "_made", behind_the_first)
    with pytest.raises(HostError, match="on host first"):
        locks.hold(path, doing="does it")
    assert [*tmp_path.iterdir()] == [path]


def test_a_forked_child_holds_nothing_of_its_parents(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    locks.hold(path, doing="does it")
    if (child := os.fork()) == 0:
        try:
            locks.hold(path, doing="does it")
        except HostError:
            locks.release(path)
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7 and path.exists()
    locks.release(path)


def test_a_lock_of_a_process_that_is_stopped_stands(tmp_path: Path) -> None:
    """By Ctrl-Z, or while its host sleeps: it will go on."""
    stopped = start(tmp_path / "lock", 60)
    assert first_line(stopped) == "held"
    stopped.send_signal(signal.SIGSTOP)
    os.utime(tmp_path / "lock", (0, 0))
    with pytest.raises(HostError, match=f"process {stopped.pid} on host"):
        locks.hold(tmp_path / "lock", doing="does it")
    stopped.kill()
    stopped.wait()


def test_a_lock_of_a_container_that_has_our_hosts_name_stands(tmp_path: Path) -> None:
    """As `docker run --network=host` has: its processes have numbers of their own."""
    own_numbers = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*own_numbers, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a namespace of process numbers")
    path = tmp_path / "lock"
    with start(path, 20, *own_numbers) as contained:
        assert first_line(contained) == "held"
        with pytest.raises(HostError, match=f"on host {socket.gethostname()} does it"):
            locks.hold(path, doing="does it")
        contained.kill()
    os.utime(path, (0, 0))
    assert locks.hold(path, doing="does it"), "nobody touches it any more"
    locks.release(path)


def test_a_lock_of_another_host_of_our_name_stands_and_that_of_before_a_restart_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines made of one image may share a file system, and the number of their namespace is the same anywhere."""
    path = tmp_path / "lock"
    locks.hold(path, doing="does it")
    ours = json.loads(path.read_text())
    locks.release(path)
    foreign(path, **ours | {"boot": "another", "pid": 2**22 - 1})
    os.utime(path, (time.time() - 40,) * 2)
    monkeypatch.setattr(locks, "_booted", lambda: time.time() - 30)
    with pytest.raises(HostError):  # whose holder may not have had its turn yet
        locks.hold(path, doing="does it")
    monkeypatch.setattr(locks, "_booted", lambda: time.time() - 90)
    for touched_before, gone in ((40, False), (80, False), (110, True)):  # seconds: lately, since the start, before it
        touched = time.time() - touched_before
        os.utime(path, (touched, touched))
        assert (locks.holder_of(path) is None) == gone
    assert locks.hold(path, doing="does it"), "this host was started since"
    locks.release(path)
    foreign(path, **ours | {"pid": 2**22 - 1})
    assert locks.hold(path, doing="does it"), "ours, whose process is gone, at once"
    locks.release(path)


def test_this_host_says_when_it_was_started() -> None:
    assert 0 < locks._booted() < time.time() and locks._boot()


def test_another_process_of_the_same_number_does_not_hold_it(tmp_path: Path) -> None:
    path = foreign(tmp_path / "lock", host=socket.gethostname())
    assert locks.hold(path, doing="does it")
    assert not locks.hold(path, doing="does it"), "held already"
    locks.release(path)


@pytest.mark.parametrize("lives", [True, False])
def test_a_process_that_the_host_hides_is_asked_whether_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    """Another user's, where /proc is mounted with hidepid: its lock stands until nobody touches it."""

    def kill(pid: int, number: int) -> None:
        raise PermissionError if lives else ProcessLookupError

    path = foreign(tmp_path / "lock", host=socket.gethostname(), pid=2**22 - 1)  # /proc shows none of this number
    monkeypatch.setattr(locks.os, "kill", kill)
    if lives:
        with pytest.raises(HostError):
            locks.hold(path, doing="does it")
        os.utime(path, (0, 0))
    assert locks.hold(path, doing="does it")
    locks.release(path)


def test_a_lock_that_may_not_be_read_is_taken_over_when_nobody_touches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = foreign(tmp_path / "lock"), Path.read_text

    def refuse(self: Path, *args: object, **kwargs: object) -> str:
        if self == path and locks._HELD.get(path) is None:
            raise PermissionError(13, "Permission denied")
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(HostError):
        locks.hold(path, doing="does it")
    os.utime(path, (0, 0))
    assert locks.hold(path, doing="does it")
    locks.release(path)


@pytest.mark.parametrize("content", ['{"host": 5, "pid": "x", "started": [], "job": 3}', "[]", "nothing"])
def test_a_lock_that_is_none_of_ours_stands_until_nobody_touches_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "lock").write_text(content)
    with pytest.raises(HostError):
        locks.hold(tmp_path / "lock", doing="does it")
    os.utime(tmp_path / "lock", (0, 0))
    assert locks.hold(tmp_path / "lock", doing="does it")
    locks.release(tmp_path / "lock")


def test_a_lock_is_touched_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_TOUCHED_EVERY_S", 0.05)
    path = tmp_path / "lock"
    locks.hold(path, doing="does it")
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 10
    while path.stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    locks.release(path)


def test_a_lock_that_another_took_over_is_not_touched(tmp_path: Path) -> None:
    class AfterOneTurn(threading.Event):
        turns = 0

        def wait(self, timeout: float | None = None) -> bool:
            self.turns += 1
            return self.turns > 1

    path = tmp_path / "lock"
    locks.hold(path, doing="does it")
    os.utime(path, (0, 0))
    locks._touch(path, AfterOneTurn())
    assert path.stat().st_mtime > 0, "ours is"
    os.utime(foreign(path), (0, 0))
    locks._touch(path, AfterOneTurn())
    assert path.stat().st_mtime == 0
    locks.release(path)
    assert path.exists(), "it is the other's"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot write"):
        locks.hold(tmp_path / "file" / "lock", doing="does it")
