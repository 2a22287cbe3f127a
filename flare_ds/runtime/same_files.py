"""All ranks see the same files, or the job ends before it loads anything.

Rank 0 writes a file with a random name where the run, its cache and its states are going to be, and every rank looks
for it. What is only read, the base, is compared by the names and sizes of its files.
"""

import os
import secrets
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from flare_ds.config import Config
from flare_ds.exceptions import HostError, on_every_rank
from flare_ds.files import disk_errors
from flare_ds.model_files.fingerprint import file_states
from flare_ds.runtime.process_group import gather_objects, ranks_named, world_size
from flare_ds.runtime.rank_zero import on_rank_zero

_PATIENCE_S = 5.0
"""A file system of a network may show a new file a little later."""


def check_same_files(config: Config) -> None:
    """Refuse a job whose hosts do not share run_dir, cache_dir or the base; a collective, on all ranks alike.

    Raises:
        HostError: naming the setting and the ranks that see something else; or a place cannot be written.
    """
    if world_size() == 1:
        return
    for setting, path in (("run_dir", config.run_dir), ("cache_dir", config.cache_dir)):
        _compare(setting, path, partial(_token, Path(path)))
    _compare("model.base", config.model.base, lambda: _sizes(Path(config.model.base)))


def _compare(setting: str, path: str, look: Callable[[], object]) -> None:
    seen = gather_objects(look())
    others = [rank for rank, found in enumerate(seen) if found != seen[0]]
    if others:
        problem = f"{setting}={path!r} is not the same on {ranks_named(others)} as on {ranks_named([0])}"
        fix = f"put {setting} on a file system that all hosts share, and give its absolute path"
        raise on_every_rank(HostError(problem, fix=fix))


def _token(directory: Path) -> bool | None:
    """Whether this rank sees what rank 0 writes there; None: it may not write there, so nothing can be told."""
    token = on_rank_zero(_write_token, directory)
    if token is None:
        return None
    # Where rank 0 looked, relative as it was given: the ranks' working directories may differ, too.
    found = _appears(token)
    gather_objects(None)  # all have looked
    on_rank_zero(token.unlink, missing_ok=True)
    return found


def _write_token(directory: Path) -> Path | None:
    """A new file in the directory, or where it will be made."""
    while not directory.is_dir():
        directory = directory.parent
    if not os.access(directory, os.W_OK):
        return None
    token = directory / f".same_files.{secrets.token_hex(8)}.tmp"
    with disk_errors(token):
        token.touch()
    return token


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + _PATIENCE_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _sizes(directory: Path) -> list[tuple[str, int]]:
    """The names and sizes of a directory's files; not their times, for hosts may have copies."""
    return [(name, size) for name, size, _ in file_states(directory)]
