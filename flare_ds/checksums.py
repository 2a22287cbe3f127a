"""Checksums of structures, files and directories: what every content key and every check of a file is made of."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> bytes:
    """JSON whose bytes depend on the value alone; what every checksum of a structure is taken of."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()


def json_sha256(value: Any) -> str:
    """Checksum of a structure of JSON values, as lower-case hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_sha256(path: Path) -> str:
    """Checksum of a file's bytes, as lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_sha256(directory: Path) -> str:
    """Checksum of the names and contents of a directory's own files; an unchanged file is read once by a process."""
    files = sorted(file for file in directory.iterdir() if file.is_file())
    states = [(file, file.stat()) for file in files]
    digests = [f"{file.name} {_unchanged_sha256(file, state.st_size, state.st_mtime_ns)}\n" for file, state in states]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


@lru_cache(maxsize=256)
def _unchanged_sha256(path: Path, size: int, written_ns: int) -> str:
    """A model is asked for once a split, and reading its gigabytes takes seconds."""
    return file_sha256(path)
