"""Files that are either whole or absent: written to a temporary name, synced, renamed."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flare_ds.exceptions import HostError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a read-only place into a HostError naming `path`."""
    try:
        yield
    except OSError as error:
        fixes = {
            errno.ENOSPC: "free some space, then run the same command again: it continues",
            errno.EDQUOT: "your quota is used up: free some space, then run the same command again",
            errno.EACCES: "choose a place you may write to",
            errno.EROFS: "choose a place you may write to",
        }
        if error.errno not in fixes:
            raise
        raise HostError(f"cannot write {path}: {error.strerror}", fix=fixes[error.errno]) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it, and rename it into place.

    Raises:
        HostError: the disk is full or not writable; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, in key order as given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
