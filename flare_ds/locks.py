"""Locks that need nothing of a file system but that a new file is made once: a file that says who holds it.

    {"host": "node3", "pid": 4711, "started": "8412365", "job": "1234.0", "namespace": "pid:[4026531836]",
     "boot": "0a59993c-0995-42f1-9dca-71c8c524eeba"}

The holder touches it every few seconds. A lock is taken over when its holder is surely gone: on this host if its
process is dead, or it was last touched before the host was started anew; on another if its scheduler job was started
again, or it has not been touched for long. Any other stands, and who holds it is said. A container, which sees
processes of its own, is a host of its own, and so is one that merely has the name of this. (`flock` is not there on
every cluster file system, and does not say who.)
"""

import atexit
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from flare_ds.exceptions import HostError
from flare_ds.files import disk_errors

_TOUCHED_EVERY_S = 20.0
_DEAD_AFTER_S = 900.0
"""Far more than a busy host, a slow file system or clocks that differ can make of the seconds above."""
_ASKED_EVERY_S = 0.2
_HIDDEN = "?"
_HELD: dict[Path, "_Held"] = {}


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Attributes:
        host: its name.
        pid: of the process there.
        started: when, in the host's ticks, so that another process of that number is not taken for it.
        job: of the scheduler, with how often it was started again; empty outside of one.
        namespace: of the process numbers, where there are several; empty in locks of earlier versions, too.
        boot: what the host calls the time since it was started; likewise.
    """

    host: str
    pid: int
    started: str
    job: str
    namespace: str = ""
    boot: str = ""

    @property
    def is_one(self) -> bool:
        """Whether it is what a lock of ours says: anybody may have written it."""
        return all(type(getattr(self, one.name)) is one.type for one in fields(self))

    def __str__(self) -> str:
        job = f", job {self.job.partition('.')[0]}" if self.job else ""
        return f"process {self.pid} on host {self.host}{job}"


@dataclass(frozen=True)
class _Held:
    pid: int  # a forked child holds nothing
    released: threading.Event
    in_new_directory: bool


def hold(path: Path, *, doing: str) -> bool:
    """Hold a lock until `release` or the end of this process; one that this process holds already is simply kept.

    Args:
        path: the lock's file; its directory is made.
        doing: what the holder does, for the message, e.g. `is writing the run runs/pl`.

    Returns:
        Whether it was not held before.

    Raises:
        HostError: another process holds it, or it cannot be written.
    """
    path = _place(path)
    if _is_mine(path):
        return False
    with disk_errors(path):
        holder = _taken(path)
        for _ in range(5):
            if holder == "":  # its holder has yet to write its name
                time.sleep(_ASKED_EVERY_S)
                holder = _taken(path)
    if holder is not None:
        raise HostError(
            f"{holder or 'another process'} {doing}",
            fix=f"wait for it to end, or stop it; if it is certainly gone, delete {path}",
        )
    return True


@contextmanager
def one_at_a_time(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock beside `path` meanwhile; where another holds it, wait.

    Args:
        path: what only one process may make; its directory is made.
        waiting: called once if another holds the lock.

    Raises:
        OSError: the lock cannot be written.
    """
    lock, told = _place(path.with_name(f".{path.name}.lock")), False
    while _taken(lock) is not None:
        if not told:
            waiting()
        told = True
        time.sleep(_ASKED_EVERY_S)
    try:
        yield
    finally:
        release(lock)


def release(path: Path) -> None:
    """Give a lock back that this process holds; any other is left alone.

    A directory that was made for the lock, and holds nothing now, goes with it.
    """
    path = _place(path)
    if not _is_mine(path):
        return
    held = _HELD.pop(path)
    held.released.set()
    with suppress(OSError):
        if _read(path)[0] == _me():
            path.unlink()
            if held.in_new_directory:
                path.parent.rmdir()


def holder_of(path: Path) -> tuple[Holder, float] | None:
    """Who holds a lock, and how many seconds ago they touched it; None: nobody does, or who does is surely gone."""
    path = _place(path)
    holder, seconds = _read(path)
    return None if holder is None or _is_gone(path) else (holder, seconds)


def release_all() -> None:
    """Give every lock back, as the end of the process does; for a process that ends by `os._exit`."""
    for path in list(_HELD):
        release(path)


def _place(path: Path) -> Path:
    return path.parent.resolve() / path.name


def _is_mine(path: Path) -> bool:
    return path in _HELD and _HELD[path].pid == os.getpid()


def _taken(path: Path) -> Holder | str | None:
    """Take the lock: None if it is ours now, else who holds it (empty: not known)."""
    new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (_made(path) or _taken_over(path)):
        return _read(path)[0] or ""
    released = threading.Event()
    _HELD[path] = _Held(os.getpid(), released, new)
    threading.Thread(target=_touch, args=(path, released), daemon=True).start()
    return None


def _made(path: Path) -> bool:
    """Whether the file is new, and so ours: of all that ask, on all hosts, just one makes it."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, json.dumps(asdict(_me())).encode())
    except OSError:  # a full disk must leave no lock that names nobody
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return True


def _taken_over(path: Path) -> bool:
    """Put our name into the lock of a holder that is gone; one at a time, or two could each remove the other's."""
    if not _is_gone(path):
        return False
    turn = path.with_name(f"{path.name}.takeover")
    with suppress(OSError):
        if time.time() - turn.stat().st_mtime > _DEAD_AFTER_S:
            turn.unlink()
    if not _made(turn):
        return False
    try:
        if not _is_gone(path):
            return False
        mine = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        _made(mine)
        os.replace(mine, path)
        return True
    finally:
        turn.unlink(missing_ok=True)


def _is_gone(path: Path) -> bool:
    holder, seconds = _read(path)
    me, untouched = _me(), seconds > _DEAD_AFTER_S
    if holder is None:
        return untouched
    named_as_here = holder.host == me.host and holder.namespace in ("", me.namespace)
    # A process that was stopped, or slept with its host, touches nothing and goes on.
    here = named_as_here and holder.boot in ("", me.boot)
    if here and (started := _started(holder.pid)) != _HIDDEN:
        return started != holder.started
    job, _, restart = holder.job.partition(".")
    again = bool(job) and me.job.partition(".")[0] == job and me.job.partition(".")[2] != restart
    # Who touches it since this host was started is on another of that name.
    quiet = seconds > 3 * _TOUCHED_EVERY_S
    before_boot = named_as_here and not here and quiet and time.time() - seconds < _booted()
    return untouched or again or before_boot


def _read(path: Path) -> tuple[Holder | None, float]:
    """Who holds a lock (None: not readable, or being written just now), and for how long it was not touched."""
    try:
        seconds = time.time() - path.stat().st_mtime
    except OSError:
        return None, 0.0  # given back just now
    try:
        holder = Holder(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None, 0.0
    except (OSError, ValueError, TypeError):  # it may not be read, is being written, or is no lock of ours
        return None, seconds
    return holder if holder.is_one else None, seconds


def _me() -> Holder:
    job, pid = os.environ.get("SLURM_JOB_ID", ""), os.getpid()
    job = f"{job}.{os.environ.get('SLURM_RESTART_COUNT', '0')}" if job else ""
    return Holder(socket.gethostname(), pid, _started(pid), job, _namespace(), _boot())


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _booted() -> float:
    """When this host was started, in seconds since 1970; 0 where it does not say."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith("btime ")), 0.0)


def _started(pid: int) -> str:
    """When a process of this host started, in ticks; empty if there is none (a dead one nobody waited for is none).

    `_HIDDEN`: it lives, but is another user's, and the host shows nobody those (/proc with hidepid).
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except OSError:
        if sys.platform == "linux":
            return _HIDDEN if _lives(pid) else ""
        import psutil  # which takes longer than all else here

        return _HIDDEN if psutil.pid_exists(pid) else ""


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _touch(path: Path, released: threading.Event) -> None:
    me = _me()
    while not released.wait(_TOUCHED_EVERY_S):
        with suppress(OSError):
            if _read(path)[0] == me:  # whoever took it over keeps it alive, or nobody does
                os.utime(path)


atexit.register(release_all)
