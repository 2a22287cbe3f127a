"""Directories that are either whole or absent: token caches, translations, stored source states, fetched data.

    .NAME.3f2a9c0d          being built, or left by a build that was killed
    .NAME.partial           finished parts of one that takes hours: the command that was killed goes on with them
    NAME                    whole: its manifest was written last, everything synced, then the directory renamed
    .NAME.3f2a9c0d.trash    given up: deleted a day later, when something is built or removed beside it

A manifest says size and sha256 of each file, and its own checksum. Builders of the same directory do not wait for
each other: the first to finish wins, the others find what it made and drop their own. On one host a deleted file lives
until its readers close it; on a network file system a reader on another host is killed (SIGBUS) as soon as it touches
a page that is gone, hence the day.
"""

import errno
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from flare_ds.checksums import file_sha256, json_sha256
from flare_ds.exceptions import FlareError
from flare_ds.files import disk_errors, opening, sync
from flare_ds.json_text import parse_object
from flare_ds.progress import bar

Check = Callable[[Path], object]
"""Raises a FlareError where a directory is not whole; looks at its manifest and at the sizes of its files."""
Form = TypeVar("Form", bound=BaseModel)
Count = Annotated[int, Field(ge=0, lt=2**63)]

DAY_S = 24 * 3600
"""A living build writes every few seconds; a day leaves room for one that was suspended, and for clocks that differ."""
PARTIAL = ".partial"
_TRASH = re.compile(r"\..+\.[0-9a-f]{8}\.trash")
_LAST_USED = "last_used"


class FileRecord(BaseModel):
    """What a manifest says of a file.

    Attributes:
        bytes: its size.
        sha256: the checksum of its content; empty where a manifest of old does not say it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bytes: Count
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileRecord":
        """Of a file as it is now."""
        return cls(bytes=path.stat().st_size, sha256=file_sha256(path))


@contextmanager
def publishing(directory: Path, check: Check, *, elsewhere: str, dead_after_s: float = DAY_S) -> Iterator[Path]:
    """Yield a fresh directory to fill, which then appears as `directory`.

    Args:
        directory: to be.
        check: whether another builder's directory is whole.
        elsewhere: how a user chooses another place, as a sentence.
        dead_after_s: builds of it in which nothing was written for so long are removed.

    Raises:
        HostError: the place is not writable.
    """
    with disk_errors(directory.parent, elsewhere=elsewhere):
        partial = build_name(directory, secrets.token_hex(4))
        partial.mkdir(parents=True)
        remove_dead_builds(directory, dead_after_s, keep=partial)
    try:
        yield partial
        with disk_errors(directory.parent, elsewhere=elsewhere):
            publish(partial, directory, check)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def build_name(directory: Path, tag: str) -> Path:
    """What a directory is called while it is built; the tag is 8 hexadecimal digits."""
    return directory.with_name(f".{directory.name}.{tag}")


def publish(partial: Path, directory: Path, check: Check) -> None:
    """Rename into place; where a whole directory is already, another builder was faster, and a bad one makes way."""
    sync(partial)
    while True:
        try:
            partial.rename(directory)
            return sync(directory.parent)
        except OSError as error:
            link = directory.is_symlink()
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not (link and error.errno == errno.ENOTDIR):
                raise
        try:
            check(directory)
            return None
        except FlareError:
            with suppress(FileNotFoundError):  # another builder moved it first
                directory.unlink() if link else set_aside(directory)


def remove_dead_builds(directory: Path, dead_after_s: float = DAY_S, *, keep: Path | None = None) -> None:
    """Remove builds of a directory that are surely dead, and what was given up beside it a day ago."""
    sweep_trash(directory.parent)
    builds = re.compile(re.escape(f".{directory.name}.") + "[0-9a-f]{8}")
    for build in (path for path in directory.parent.iterdir() if builds.fullmatch(path.name) and path != keep):
        with suppress(FileNotFoundError):  # it has just been finished or removed
            written = max(path.stat().st_mtime for path in (build, *build.iterdir()))
            if time.time() - written >= dead_after_s:
                shutil.rmtree(build, ignore_errors=True)


def set_aside(directory: Path) -> None:
    """Give a directory up.

    Raises:
        OSError: it is not there any more, or the directory around it is not writable.
    """
    finished = directory.name.lstrip(".").split(".")[0]
    aside = directory.with_name(f".{finished}.{secrets.token_hex(4)}.trash")
    with suppress(PermissionError):  # another's: a day is counted from when it was written, then
        os.utime(directory)  # from now on the day is counted
    directory.rename(aside)


def is_trash(path: Path) -> bool:
    """Whether a directory was given up."""
    return _TRASH.fullmatch(path.name) is not None


def sweep_trash(directory: Path) -> None:
    """Delete what was given up in a directory a day ago or more."""
    for path in directory.iterdir():
        with suppress(FileNotFoundError):  # another process was faster
            if is_trash(path) and time.time() - path.stat().st_mtime > DAY_S:
                shutil.rmtree(path, ignore_errors=True)


def mark_used(directory: Path) -> None:
    """Note that a run has opened a directory; one that cannot be written to is used without."""
    with suppress(OSError):
        (directory / _LAST_USED).touch()


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Write and sync a manifest, with its own checksum.

    Raises:
        OSError: the disk is full or not writable.
    """
    path.write_bytes(with_checksum(dict(content)))
    sync(path)


def with_checksum(content: dict[str, Any]) -> bytes:
    """The bytes of a manifest, its checksum included."""
    checksum = json_sha256(content)
    text = json.dumps(content | {"checksum": checksum}, indent=1, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "surrogatepass")


def read_manifest(path: Path, form: type[Form], *, version: int | None = None, unsigned: bool = False) -> Form:
    """What a manifest says.

    Args:
        path: of it.
        form: what it has to say.
        version: the `format_version` that it has to have, if any.
        unsigned: whether it may have no checksum: it is of old.

    Raises:
        OSError: it cannot be read.
        HostError: too many files are open.
        ValueError: it is no JSON object, of another version or form, or was changed after it was written.
    """
    with opening(path):
        written = path.read_bytes()
    content = parse_object(written)
    if version not in (None, found := content.get("format_version")):
        raise ValueError(f"it has format version {found}, this flare_ds reads version {version}")
    checksum = content.pop("checksum", None)
    said = form.model_validate(content)
    if written != with_checksum(content) and not (unsigned and checksum is None):
        raise ValueError(f"{path} was changed after it was written (checksum {checksum})")
    return said


def check_sizes(directory: Path, files: Mapping[str, FileRecord]) -> None:
    """Check that every file is there in its full size.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, file in files.items():
        try:
            found = (directory / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            found = None
        if found is None or not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{name} of {directory} is missing")
        if found.st_size != file.bytes:
            raise ValueError(f"{name} of {directory} has {found.st_size} bytes, the manifest says {file.bytes}")


def check_contents(directory: Path, files: Mapping[str, FileRecord]) -> None:
    """Read every byte.

    Raises:
        ValueError: naming all files whose content is not what the manifest says.
        OSError: one cannot be read.
        HostError: too many files are open.
    """
    if not files or not all(file.sha256 for file in files.values()):
        raise ValueError(f"{directory} has a manifest without checksums: an older version wrote it")
    changed = []
    total = sum(file.bytes for file in files.values())
    with bar(total=total, desc="verify", unit="B", unit_scale=True) as progress:
        for name, file in files.items():
            with opening(directory / name):
                if file_sha256(directory / name) != file.sha256:
                    changed.append(name)
            progress.update(file.bytes)
    if changed:
        raise ValueError(f"{directory} is damaged: the content of {', '.join(changed)} was changed")
