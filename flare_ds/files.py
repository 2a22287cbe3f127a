"""Files that are either whole or absent: written to a temporary name, synced, renamed."""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from flare_ds.exceptions import HostError


@contextmanager
def disk_errors(path: Path, *, elsewhere: str = "choose a place you may write to") -> Iterator[None]:
    """Turn a full disk or a place that cannot be written into a HostError naming `path`.

    Args:
        path: what is being written.
        elsewhere: how to choose another place, as a sentence.
    """
    try:
        yield
    except (OSError, SafetensorError) as raised:
        error = raised if isinstance(raised, OSError) else _of_the_system(raised)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = f"free some space and run the same command again, or {elsewhere}" if full else elsewhere
        raise HostError(f"cannot write {error.filename or path}: {error.strerror}", fix=fix) from raised


def _of_the_system(error: SafetensorError) -> OSError:
    """The system's error that safetensors tells of in words alone.

    Raises:
        SafetensorError: it tells of another.
    """
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is None:
        raise error
    return OSError(int(number[1]), os.strerror(int(number[1])))


def sync(path: Path) -> None:
    """Make a file's content, or a directory's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
            sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, in key order as given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
