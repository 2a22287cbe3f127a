"""Files that are either whole or absent: written to a temporary name, synced, renamed."""

import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = f"free some space and run the same command again, or {elsewhere}" if full else elsewhere
        raise HostError(f"cannot write {error.filename or path}: {error.strerror}", fix=fix) from error


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
    write_text(path, json_text(value, indent=2) + "\n")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON that any reader takes: NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_without_not_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _without_not_finite(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {key: _without_not_finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_without_not_finite(inner) for inner in value]
    return value
