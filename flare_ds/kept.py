"""What lies in a directory of published directories: of which kind each is, in what state, and how one is removed."""

import re
import shlex
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flare_ds.exceptions import CacheError, FlareError
from flare_ds.files import disk_errors, readable_again
from flare_ds.json_text import parse_object
from flare_ds.published import PARTIAL, FileRecord, check_contents, check_sizes, is_trash, set_aside, sweep_trash

_ABANDONED_SECONDS = 3600
_FINISHED_NAME = re.compile(r"[^.].*-[0-9a-f]{16}")
_BUILD_NAME = re.compile(r"\..+-[0-9a-f]{16}\..+")
_KEYLESS_BUILD = re.compile(r"\.(.+)\.[0-9a-f]{8}")
About = tuple[str, str, str]
"""Task, languages and rows in words; empty where there is nothing to say."""


@dataclass(frozen=True)
class Kind:
    """One kind of published directory.

    Attributes:
        name: what one is called.
        manifest: its file name.
        is_manifest: whether a manifest is one of this kind.
        file: pattern of the files that tell it where the manifest is gone; empty: it is not told then.
        files: what its manifest says of its files; raises a FlareError where that cannot be read.
        damaged: the error that something is wrong with it.
        about: what it holds.
        look: further at what it holds, when every byte is as it was written.
        names: what finished ones are called whose names end in no key.
    """

    name: str
    manifest: str
    is_manifest: Callable[[dict[str, Any]], bool]
    file: str
    files: Callable[[Path], Mapping[str, FileRecord]]
    damaged: Callable[[Path, Exception], FlareError]
    about: Callable[[Path], About] = lambda path: ("", "", "")
    look: Callable[[Path], None] = lambda path: None
    names: Callable[[], Collection[str]] = tuple

    def holds(self, path: Path) -> bool:
        """Whether a directory is of this kind, in whatever state: by its manifest, else by its name and its files."""
        try:
            return self.is_manifest(parse_object((path / self.manifest).read_bytes()))
        except (OSError, ValueError):
            return bool(self.file and _FINISHED_NAME.fullmatch(path.name) and any(path.glob(self.file)))

    def check(self, path: Path) -> None:
        """Look at the manifest, and at the sizes of the files.

        Raises:
            FlareError: it is not whole.
        """
        try:
            check_sizes(path, self.files(path))
        except ValueError as error:
            raise self.damaged(path, error) from error

    def verify(self, path: Path) -> None:
        """Read every byte.

        Raises:
            FlareError: it is not what was written; or that cannot be known.
        """
        self.check(path)
        try:
            check_contents(path, self.files(path))
        except ValueError as error:
            raise self.damaged(path, error) from error
        except OSError as error:
            fix = readable_again(error, damaged=self.damaged(path, error).fix)
            raise CacheError(f"cannot read {error.filename}: {error.strerror}", fix=fix) from error
        self.look(path)


@dataclass(frozen=True)
class Kept:
    """A directory as it lies on disk.

    Attributes:
        path: where it is.
        kind: what it is; None: a build of which that cannot be told.
        state: whole; damaged; or unfinished: being built, or left by a build that was killed.
        about: what it holds.
        bytes: of its files.
        seconds_old: since it was last used, or one of its files written.
    """

    path: Path
    kind: Kind | None
    state: Literal["whole", "damaged", "unfinished"]
    about: About
    bytes: int
    seconds_old: float

    @property
    def is_abandoned(self) -> bool:
        """Whether a build was killed that nothing goes on with, and nothing has been written there for an hour."""
        resumed = self.path.name.endswith(PARTIAL)
        return self.state == "unfinished" and not resumed and self.seconds_old > _ABANDONED_SECONDS

    def remove(self) -> None:
        """Remove it: who opens it finds all of it or nothing, and who has it open reads on for a day.

        Raises:
            HostError: the directory around it is not writable.
        """
        with disk_errors(self.path, elsewhere="check who owns it"):
            if self.state == "unfinished":  # nobody reads it
                shutil.rmtree(self.path)
            else:
                set_aside(self.path)
            sweep_trash(self.path.parent)


def kept_in(directory: Path, kinds: Sequence[Kind]) -> list[Kept]:
    """All of some kinds in a directory, by name, finished or not; whatever else lies there is passed over.

    Raises:
        CacheError: there is no such directory.
    """
    if not directory.is_dir():
        raise CacheError(f"there is no directory {directory}", fix="give the cache_dir of your configs")
    found = (_look_at(path, kinds) for path in sorted(directory.iterdir()))
    return [kept for kept in found if kept is not None]


def caches_among(paths: Sequence[Path], kinds: Sequence[Kind]) -> list[tuple[Path, Kind | None]]:
    """Paths of some kinds, finished, and those in directories of them; whatever else a shell's `*` gives is left out.

    Each comes with its kind; None: what is not there, or has the name of a finished one and is of no kind.

    Raises:
        CacheError: nothing is left.
    """
    found: list[tuple[Path, Kind | None]] = []
    for path in paths:
        kind = _kind_of(path, kinds)
        if kind or _FINISHED_NAME.fullmatch(path.name) or not path.exists():
            found.append((path, kind))
        elif path.is_dir():
            found += [(kept.path, kept.kind) for kept in kept_in(path, kinds) if kept.state != "unfinished"]
    if not found:
        problem = f"{', '.join(map(str, paths)):.300} holds no finished cache"
        raise CacheError(problem, fix="give the cache_dir of your configs, or a cache in it")
    return found


def kept_at(path: Path, kinds: Sequence[Kind]) -> Kept:
    """Look at one directory; sizes of files are compared, contents are not.

    Raises:
        CacheError: it is none of these kinds, or a link.
    """
    kept = _look_at(path, kinds)
    if kept is None:
        if path.is_symlink() and path.exists():
            raise CacheError(f"{path} is a link to {path.resolve()}", fix="give that directory; the link is kept")
        problem = f"{path} is not a cache directory" if path.exists() else f"there is no cache at {path}"
        listing = shlex.join(["flare-ds", "cache", "ls", str(path.absolute().parent)])
        raise CacheError(problem, fix=f"list the caches there: `{listing}`")
    return kept


def _kind_of(path: Path, kinds: Sequence[Kind]) -> Kind | None:
    return next((kind for kind in kinds if kind.holds(path)), None)


def _look_at(path: Path, kinds: Sequence[Kind]) -> Kept | None:
    """A directory of some kind; None: it is of none, or is gone by now, as a build is that has just been finished."""
    with suppress(FileNotFoundError):
        return _told(path, kinds)
    return None


def _is_build(name: str, kinds: Sequence[Kind]) -> bool:
    """Whether a directory is called as one that is being built: by its key, or as one of these alone is."""
    keyless = _KEYLESS_BUILD.fullmatch(name)
    return bool(_BUILD_NAME.fullmatch(name) or (keyless and any(keyless[1] in kind.names() for kind in kinds)))


def _told(path: Path, kinds: Sequence[Kind]) -> Kept | None:
    if not path.is_dir() or path.is_symlink() or is_trash(path):
        return None
    kind = _kind_of(path, kinds)
    state: Literal["whole", "damaged", "unfinished"] = "damaged"
    about: About = ("", "", "")
    if kind is not None:
        try:
            about = kind.about(path)
            kind.check(path)
            state = "whole"
        except FlareError:
            pass
    if _is_build(path.name, kinds):
        state = "unfinished"
    elif kind is None:
        return None
    files = [file.stat() for file in path.rglob("*") if file.is_file()]
    written = max([path.stat().st_mtime, *(file.st_mtime for file in files)])
    return Kept(path, kind, state, about, sum(file.st_size for file in files), time.time() - written)
