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
    digests = [f"{file.name} {unchanged_sha256(file)}\n" for file in files]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def unchanged_sha256(path: Path) -> str:
    """Checksum of a file's bytes, which a process reads once as long as its size and time stay what they were."""
    state = path.stat()
    return _sha256(path.absolute(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, written_ns: int) -> str:
    """Models have gigabytes and are asked for once a split; a report and a sweep ask for many adapters, and often."""
    return file_sha256(path)
