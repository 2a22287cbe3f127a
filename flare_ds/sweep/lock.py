"""OUT/sweep.lock: one sweep at a time writes a directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flare_ds.locks import hold, holder_of, release

_LOCK = "sweep.lock"


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Hold a sweep's directory against a second one that would write the same runs.

    Raises:
        HostError: another living process holds it.
    """
    mine = hold(out / _LOCK, doing=f"is writing {out} already")
    try:
        yield
    finally:
        if mine:
            release(out / _LOCK)


def is_swept(out: Path) -> bool:
    """Whether a sweep writes a directory now."""
    return holder_of(out / _LOCK) is not None
