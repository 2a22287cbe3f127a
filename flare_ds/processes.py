"""Processes that we start, and their whole trees, end with us; the output of commands is seen and kept."""

import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import parent_process
from pathlib import Path
from threading import Event, Thread
from typing import IO

from flare_ds.exceptions import HostError
from flare_ds.files import disk_errors

_CHUNK = 1 << 16
_PATIENCE_S = 15.0
COMMAND, MESSAGE = "$ ", "flare-ds: "
"""How a line of a log begins with which a command starts; and what stands in one that tells what went wrong."""
_LINGER_S = 5.0

# Lives in a session of its own and waits on a pipe that only we hold: when we die, even by kill -9, the pipe closes
# and the command's group is ended. Otherwise its ranks would train on beside the sweep that continues our work.
_GUARD = """
read -r _
kill -s TERM -- "-$1"
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do kill -s 0 -- "-$1" || exit 0; sleep 1; done
kill -s KILL -- "-$1"
"""


def end_with_parent() -> None:
    """From now on, end when the parent is gone: a pool does not notice that its parent was killed, and would wait."""
    Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def search_path() -> str:
    """PATH for the commands: first where this Python lives, so that its own `deepspeed` or `torchrun` is found."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def free_port() -> str:
    """A port of this machine that nothing listens on, and that nobody else is given for the next minute.

    A finished connection is left on it. Until the kernel forgets that, it hands the port to no one who asks for any;
    a server that names the port, as torch's store does, may still listen on it.
    """
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        server.accept()[0].close()  # first: the side that closes first keeps the port
        return str(server.getsockname()[1])


class StoppedError(Exception):
    """A command was ended before its time, because it was asked to be."""


def run_logged(
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    shown: bool = True,
    stop: Event | None = None,
) -> int:
    """Run a command; its output goes to the console and to the end of `log`.

    Any exception while it runs, KeyboardInterrupt above all, ends the command and everything it started.

    Once the command itself has ended, what it leaves behind is given some seconds, and then ended too.

    Args:
        command: its words.
        log: where its output goes.
        environment: variables that it has beside ours.
        shown: whether its output goes to the console, too.
        stop: ends the command when it is set, as an exception would: for threads, which no Ctrl-C reaches.

    Returns:
        The exit status; negative when a signal ended it.

    Raises:
        HostError: the command cannot be started, or the log cannot be written.
        StoppedError: `stop` was set.
    """
    with disk_errors(log), log.open("ab", buffering=0) as file:
        file.write(f"{COMMAND}{shlex.join(command)}\n".encode())
        with _own_group(command, environment or {}) as (process, output):
            _follow(process, output, file, shown, stop or Event())
            status = process.wait()
            # Whoever of the group closed its output and lives on would run beside the next command.
            if _lingers(process):
                _end_group(process, output)
            return status


def log_tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log, each as a terminal would show it (a redrawn progress bar is one line).

    Where a launcher has said more than that after our own last message, half of them are from there on.
    """
    shown, ours = _log_lines(log)
    if ours is None or ours >= len(shown) - lines:
        return "\n".join(shown[-lines:])
    return "\n".join([*shown[ours:][: lines // 2], "...", *shown[-(lines // 2) :]])


def log_reason(log: Path) -> str:
    """Why the last command of a log failed, in a line: our own last message, or else the last thing that was said."""
    shown, ours = _log_lines(log)
    return shown[-1 if ours is None else ours].partition(MESSAGE)[2] or shown[-1]


def _log_lines(log: Path) -> tuple[list[str], int | None]:
    """The lines of a log that say anything, and which of them is the last message of ours in the last command."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:  # who removed it meanwhile ends nothing by it
        text = ""
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n") if line.strip()]
    shown = shown or [f"nothing is left in {log}"]
    of_last = max((place for place, line in enumerate(shown) if line.startswith(COMMAND)), default=0)
    ours = (place for place in reversed(range(of_last, len(shown))) if MESSAGE in shown[place])
    return shown, next(ours, None)


@contextmanager
def _own_group(command: Sequence[str], own: Mapping[str, str]) -> Iterator[tuple[subprocess.Popen, IO[bytes]]]:
    environment = {**os.environ, "PATH": search_path(), "PYTHONUNBUFFERED": "1", **own}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        problem = f"cannot start {command[0]!r}: {error.strerror}"
        raise HostError(problem, fix="make it a program that runs here, or change launch") from error
    assert process.stdout is not None
    with ExitStack() as guard:  # which may find no process left for it, and goes last
        try:
            guard.enter_context(guarded(process))
            yield process, process.stdout
        except BaseException:
            _end_group(process, process.stdout)
            raise
        finally:
            process.stdout.close()


@contextmanager
def guarded(leader: subprocess.Popen) -> Iterator[None]:
    """Meanwhile the end of this process, even by kill -9, is that of a group, whose leader began its session."""
    guard = subprocess.Popen(
        ["sh", "-c", _GUARD, "guard", str(leader.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert guard.stdin is not None
    try:
        yield
    finally:
        guard.kill()
        guard.wait()
        guard.stdin.close()


def end_lingering(leader: subprocess.Popen) -> None:
    """End what is left of a group whose leader has ended: asked after some seconds, made sure of some more later."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not _lingers(leader):
            return
        _signal_group(leader, number)


def _follow(process: subprocess.Popen, output: IO[bytes], log: IO[bytes], shown: bool, stop: Event) -> None:
    """Take all output until nobody is left to write any, or the command has ended and the rest is only lingering."""
    deadline = float("inf")
    while time.monotonic() < deadline:
        if stop.is_set():
            raise StoppedError
        if _readable(output, 0.2):
            chunk = output.read(_CHUNK)
            if not chunk:
                return
            log.write(chunk)
            if shown:
                _show(chunk)
        if deadline == float("inf") and process.poll() is not None:
            deadline = time.monotonic() + _LINGER_S


def _lingers(process: subprocess.Popen) -> bool:
    """Whether some of the group is there yet, seconds after the command itself."""
    deadline = time.monotonic() + _LINGER_S
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.02)
    return True


def _end_group(process: subprocess.Popen, output: IO[bytes]) -> None:
    """Ask the group to stop, the way `kill` would, on which a run saves its state, then Ctrl-C, and make sure of it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        _signal_group(process, number)
        if _drained(output, time.monotonic() + _PATIENCE_S):
            break
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: subprocess.Popen, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _drained(output: IO[bytes], deadline: float) -> bool:
    """Wait until nobody holds the write end of the output any more: the leader may go before its ranks do."""
    while (left := deadline - time.monotonic()) > 0:
        if _readable(output, left) and not output.read(_CHUNK):
            return True
    return False


def _readable(output: IO[bytes], seconds: float) -> bool:
    """Wait for output, or its end; of many jobs some have descriptors that `select` cannot take."""
    poll = select.poll()
    poll.register(output, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _show(chunk: bytes) -> None:
    """Onto the console as long as there is one."""
    with suppress(OSError):  # a closed pipe, a lost terminal
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def say(text: str) -> None:
    """Print a line; where nobody reads on (a closed pipe, a lost terminal) that is no reason to stop."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed goes there
