"""Files that are either whole or absent: written to a temporary name, synced, renamed."""

import errno
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from flare_ds.exceptions import CheckpointError, FlareError, HostError
from flare_ds.json_text import json_text

if TYPE_CHECKING:
    from torch import Tensor

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16,64}\.tmp")
_LEFT_AFTER_S = 24 * 3600
ASK_OWNER = "ask its owner for permission to read it"
_LOOK_AT_DISK = "check the disk it is on, then run the same command again"
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_MORE_DESCRIPTORS = "raise the limit on open files, e.g. `ulimit -n 65536`, or train fewer runs in one job"


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Turn the want of a file descriptor into a HostError: what could not be opened for that is not damaged."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_DESCRIPTOR:
            raise
        raise HostError(f"cannot open {path}: {error.strerror}", fix=_MORE_DESCRIPTORS) from error


def readable_again(error: Exception, damaged: str) -> str:
    """What to do about a file that could not be read: `damaged` only where it is gone, or holds something else."""
    if isinstance(error, PermissionError):
        return ASK_OWNER
    gone = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    return _LOOK_AT_DISK if isinstance(error, OSError) and not isinstance(error, gone) else damaged


@contextmanager
def reading(path: Path, kind: type[FlareError], *, damaged: str) -> Iterator[None]:
    """Turn whatever keeps a file from being read, or what it holds from being understood, into one error.

    Args:
        path: of the file.
        kind: of error.
        damaged: what to do where it is gone, or holds something else.
    """
    try:
        with opening(path):
            yield
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        said = error if isinstance(error, OSError | SafetensorError | ValueError) else repr(error)
        raise kind(f"cannot read {path}: {said}", fix=readable_again(error, damaged)) from error


@contextmanager
def open_tensors(path: Path) -> Iterator[safe_open]:
    """Open a safetensors file.

    Raises:
        OSError: it cannot be opened.
        HostError: no file descriptor is left.
        SafetensorError: it is damaged.
    """
    # safetensors opens it twice at once, and says of whatever it cannot open that it is missing: the system says why.
    with opening(path), path.open("rb"), path.open("rb"):
        pass
    with safe_open(path, framework="pt") as file:
        yield file


def all_tensors(file: safe_open) -> "dict[str, Tensor]":
    """Those of an open file, by name."""
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


@contextmanager
def disk_errors(path: Path, *, elsewhere: str = "choose a place you may write to") -> Iterator[None]:
    """Turn a full disk or a place that cannot be written into a HostError naming `path`.

    `elsewhere` says how to choose another place, as a sentence.
    """
    try:
        yield
    except (OSError, SafetensorError) as raised:
        error = raised if isinstance(raised, OSError) else _of_the_system(raised)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = f"free some space and run the same command again, or {elsewhere}" if full else elsewhere
        fix = _MORE_DESCRIPTORS if error.errno in _NO_DESCRIPTOR else fix
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


OTHER_TMPDIR = "set TMPDIR to a writable directory with free space"


def check_temporary() -> None:
    """Say where temporary files go, if that is not where TMPDIR says: Python falls back in silence.

    Raises:
        HostError: no temporary file can be made anywhere.
    """
    wanted = os.environ.get("TMPDIR")
    try:
        used = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise HostError(f"no temporary file can be made: {error.strerror}", fix=OTHER_TMPDIR) from error
    if wanted and os.path.abspath(wanted) != used and os.environ.get("RANK", "0") == "0":
        told = f"flare-ds: TMPDIR={wanted!r} cannot be written to; temporary files go to {used}"
        print(told, file=sys.stderr)


def sync(path: Path) -> None:
    """Make a file's content, or a directory's entries, survive a power cut, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not know this for directories, which are renamed well all the same.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def readable_as_any(path: Path) -> None:
    """Give a file the mode that a new one has here: safetensors lets nobody else read its own, whatever the umask."""
    umask = os.umask(0o077)
    os.umask(umask)
    with suppress(PermissionError):  # the file system knows no modes
        path.chmod(path.stat().st_mode & 0o777 | 0o666 & ~umask)


def settle(directory: Path) -> None:
    """Make all in a directory survive a power cut, and readable as any new file is."""
    for path in directory.rglob("*"):
        if path.is_file():
            readable_as_any(path)
        sync(path)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it, and rename it into place.

    Raises:
        HostError: the disk is full or not writable; `path` is as it was.
    """
    temporary = _temporary(path)
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            write(temporary)
            readable_as_any(temporary)
            sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def check_new(directory: Path) -> None:
    """Refuse to write where something is.

    Raises:
        CheckpointError: saying so.
    """
    if directory.exists():
        raise CheckpointError(f"{directory} exists already", fix="choose another --output, or delete it")


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A directory to be filled, which is synced and gets its name once it is; if that fails, nothing is left.

    Raises:
        CheckpointError: another was given the name meanwhile.
        HostError: the disk is full or not writable.
    """
    temporary = _temporary(directory)
    with disk_errors(directory):
        try:
            temporary.mkdir(parents=True)
            sweep(directory.parent)
            yield temporary
            settle(temporary)
            sync(temporary)
            _rename_new(temporary, directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _rename_new(temporary: Path, directory: Path) -> None:
    """Give a directory its name; the system refuses that of another that holds anything."""
    try:
        temporary.rename(directory)
    except OSError:
        check_new(directory)
        raise


def _temporary(path: Path) -> Path:
    """A name beside `path` that nobody else writes to, and `sweep` knows."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


@lru_cache(maxsize=64)
def sweep(directory: Path) -> None:
    """Remove what killed writers left in a directory, once a process; a living one writes for less than a day."""
    for left in directory.iterdir():
        with suppress(OSError):  # another process was faster
            if _TEMPORARY.fullmatch(left.name) and time.time() - left.stat().st_mtime > _LEFT_AFTER_S:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, in key order as given."""
    write_text(path, json_text(value, indent=2) + "\n")
