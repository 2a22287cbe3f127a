"""Resident memory of this process, now and at most over a stretch of work, from Linux's own high-water mark."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Measure the block: what is yielded holds `peak_bytes` and `rise_bytes` (over the start) once it ends."""
    found: dict[str, int] = {}
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to the present size
    before = resident_memory()
    yield found
    peak = _status("VmHWM")
    found |= {"peak_bytes": peak, "rise_bytes": peak - before}


@contextmanager
def anonymous_memory() -> Iterator[dict[str, int]]:
    """Measure the block: `peak_bytes` over the start, without pages of files, which the system takes back at need."""
    found, done, before = {"peak_bytes": 0}, Event(), _status("RssAnon")

    def watch() -> None:
        while not done.wait(0.02):
            found["peak_bytes"] = max(found["peak_bytes"], _status("RssAnon") - before)

    thread = Thread(target=watch)
    thread.start()
    yield found
    done.set()
    thread.join()


def resident_memory() -> int:
    """Bytes of this process that are in memory now."""
    return _status("VmRSS")


def _status(key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[key].split()[0])
