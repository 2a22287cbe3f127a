"""Caches that are given up: renamed at once, deleted a day later, when something is built or removed beside them.

On one host a deleted file lives until its readers close it. On a network file system it does not: a reader on another
host is killed (SIGBUS) as soon as it touches a page that is gone.
"""

import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path

_TRASH = re.compile(r"\..+\.[0-9a-f]{8}\.trash")
_GRACE_S = 24 * 3600
_LAST_USED = "last_used"


def set_aside(directory: Path) -> None:
    """Give a cache up.

    Raises:
        OSError: it is not there any more, or the directory around it is not writable.
    """
    finished = directory.name.lstrip(".").split(".")[0]
    aside = directory.with_name(f".{finished}.{secrets.token_hex(4)}.trash")
    os.utime(directory)  # from now on the day is counted
    directory.rename(aside)


def is_trash(path: Path) -> bool:
    """Whether a directory is a cache that was given up."""
    return _TRASH.fullmatch(path.name) is not None


def sweep_trash(directory: Path) -> None:
    """Delete what was given up in a directory a day ago or more."""
    for path in directory.iterdir():
        with suppress(FileNotFoundError):  # another process was faster
            if is_trash(path) and time.time() - path.stat().st_mtime > _GRACE_S:
                shutil.rmtree(path, ignore_errors=True)


def mark_used(directory: Path) -> None:
    """Note that a run has opened a cache; one that cannot be written to is used without."""
    with suppress(OSError):
        (directory / _LAST_USED).touch()
