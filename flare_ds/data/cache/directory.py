"""A directory of caches: which lie there, in what state, and how one is removed under the eyes of its readers."""

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flare_ds.data.cache.format import FORMAT, MANIFEST, Manifest
from flare_ds.data.cache.manifest import read_manifest
from flare_ds.data.cache.reader import open_cache
from flare_ds.data.cache.trash import is_trash, set_aside, sweep_trash
from flare_ds.exceptions import CacheError
from flare_ds.files import disk_errors
from flare_ds.json_text import parse_json

State = Literal["whole", "damaged", "unfinished"]
_FINISHED_NAME = re.compile(r"[^.].*-[0-9a-f]{16}")
_ABANDONED_SECONDS = 3600
_BUILD_NAME = re.compile(r"\..+-[0-9a-f]{16}\..+")


@dataclass(frozen=True)
class StoredCache:
    """A cache directory as it lies on disk.

    Attributes:
        path: where it is.
        state: whole (it opens); damaged; or unfinished: being built, or left by a build that was killed.
        problem: what is wrong with it; empty for a whole one.
        manifest: what it holds, where that can be read.
        bytes: of its files.
        seconds_old: since it was last used, or one of its files written.
    """

    path: Path
    state: State
    problem: str
    manifest: Manifest | None
    bytes: int
    seconds_old: float


def stored_caches(directory: Path) -> list[StoredCache]:
    """All caches in a directory, by name, finished or not; whatever else lies there is passed over.

    Raises:
        CacheError: there is no such directory.
    """
    if not directory.is_dir():
        raise CacheError(f"there is no directory {directory}", fix="give the cache_dir of your configs")
    return [stored_cache(path) for path in sorted(directory.iterdir()) if is_cache(path)]


def stored_cache(path: Path) -> StoredCache:
    """Look at one cache directory; sizes of files are compared, contents are not.

    Raises:
        CacheError: it is not a cache directory.
    """
    if not is_cache(path):
        problem = f"{path} is not a cache directory" if path.exists() else f"there is no cache at {path}"
        raise CacheError(problem, fix=f"list the caches there: `flare-ds cache ls {path.absolute().parent}`")
    manifest, problem = None, ""
    state: State = "whole"
    try:
        manifest = read_manifest(path)
        open_cache(path)
    except CacheError as error:
        state, problem = "damaged", error.problem
    if _BUILD_NAME.fullmatch(path.name):
        state = "unfinished"
    files = [file.stat() for file in path.rglob("*") if file.is_file()]
    written = max([path.stat().st_mtime, *(file.st_mtime for file in files)])
    size = sum(file.st_size for file in files)
    return StoredCache(path, state, problem, manifest, size, time.time() - written)


def is_cache(path: Path) -> bool:
    """Whether a directory is a token cache, in whatever state: by its manifest, else by its name and its sections."""
    if not path.is_dir() or path.is_symlink() or is_trash(path):
        return False
    try:
        manifest = parse_json((path / MANIFEST).read_bytes())
    except (OSError, ValueError):
        built = _FINISHED_NAME.fullmatch(path.name) and any(path.glob("train.target.*"))
        return bool(built or _BUILD_NAME.fullmatch(path.name))
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def is_abandoned(cache: StoredCache) -> bool:
    """Whether a build was killed: it is not finished, and nothing has been written there for an hour."""
    return cache.state == "unfinished" and cache.seconds_old > _ABANDONED_SECONDS


def remove(cache: StoredCache) -> None:
    """Remove a cache: who opens it finds all of it or nothing, and who has it open reads on for a day.

    Raises:
        HostError: the directory is not writable.
    """
    with disk_errors(cache.path, elsewhere="check who owns it"):
        if cache.state == "unfinished":  # nobody reads it
            shutil.rmtree(cache.path)
        else:
            set_aside(cache.path)
        sweep_trash(cache.path.parent)
