"""What a cache directory looks like on disk: section names, and the manifest that describes them.

tokenized_cache/README.md describes the same for a user; this module is the only code that knows file names.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from flare_ds.checksums import json_sha256
from flare_ds.exceptions import CacheError
from flare_ds.files import disk_errors, sync

FORMAT = "flare_ds token cache"
FORMAT_VERSION = 3
MANIFEST = "manifest.json"
ELSEWHERE = "set cache_dir to a directory you may write in"
REBUILD = "rebuild it: `flare-ds prepare CONFIG`"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Section(_Record):
    """One .npy file: what it must hold."""

    dtype: str
    shape: list[int]
    bytes: int
    sha256: str


class SplitSummary(_Record):
    """One split.

    Attributes:
        rows: what a model reads, one after another: examples, or windows of them.
        examples: of the task.
        windowed: examples whose text is read through several windows, one a row.
        tokens: of all prompts and answers, by stream.
        truncated: prompts that leave out text which no other row of the example shows, by stream.
        longest_prompt: its tokens, by stream.
    """

    rows: int
    examples: int
    windowed: int
    tokens: dict[str, int]
    truncated: dict[str, int]
    longest_prompt: dict[str, int]


class Manifest(_Record):
    """Everything about a cache but the tokens; written last, so its presence means the cache is complete.

    Attributes:
        key: content key, the sha256 of `fields`.
        fields: everything the tokens depend on.
        streams: the token streams of each row and the language of each: source, source2 ..., target, and mt where an MT
            encoder reads the target text.
        labels: label words, none where answers are free; `label_tokens` are the token ids of a space and each word,
            and eos where a word begins another.
        pad_id: id to pad batches with; masked, so nothing depends on it.
        eos_id: id that ends each answer, if the tokenizer has one.
        prefix_ids: special tokens that every prompt starts with.
        newline_ids: token ids of a line break.
        vocabulary_size: one more than the largest token id the base's tokenizer knows.
        counts: rows read and rows dropped, by reason.
        splits: a summary of each split.
        sections: every file of the directory but the manifest.
    """

    format: str
    format_version: int
    key: str
    fields: dict[str, Any]
    streams: dict[str, str]
    labels: list[str]
    label_tokens: list[list[int]]
    pad_id: int
    eos_id: int | None
    prefix_ids: list[int]
    newline_ids: list[int]
    vocabulary_size: int
    counts: dict[str, int]
    splits: dict[str, SplitSummary]
    sections: dict[str, Section]


def section_name(split: str, *parts: str) -> str:
    """File name of a section, e.g. `train.source.tokens.npy`."""
    return ".".join((split, *parts, "npy"))


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The smallest unsigned type that holds every token id: uint16, or uint32 beyond 65,536 tokens."""
    assert 0 < vocabulary_size <= 2**32
    return np.dtype("<u2") if vocabulary_size <= 2**16 else np.dtype("<u4")


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` with its own checksum; fsync it and the directory.

    Raises:
        HostError: the disk is full or the directory is not writable.
    """
    path = directory / MANIFEST
    with disk_errors(path, elsewhere=ELSEWHERE), path.open("wb") as file:
        file.write(_with_checksum(manifest.model_dump(mode="json")))
        file.flush()
        os.fsync(file.fileno())
    sync(directory)


def read_manifest(directory: Path) -> Manifest:
    """Read and check `manifest.json`.

    Raises:
        CacheError: there is none, it is damaged or edited, or it is of another format version.
    """
    try:
        written = (directory / MANIFEST).read_bytes()
        content = json.loads(written.decode("utf-8"))
    except OSError as error:
        raise CacheError(f"{directory} holds no finished cache: {MANIFEST}: {error.strerror}", fix=REBUILD) from error
    except ValueError as error:
        raise CacheError(f"{directory / MANIFEST} is damaged: {error}", fix=REBUILD) from error
    _check_version(directory, content)
    found = content.pop("checksum", None)
    if written != _with_checksum(content):
        raise CacheError(f"{directory / MANIFEST} was changed after it was written (checksum {found})", fix=REBUILD)
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise CacheError(f"{directory / MANIFEST} is malformed: {error}", fix=REBUILD) from error


def _check_version(directory: Path, content: Any) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CacheError(f"{directory / MANIFEST} does not describe a {FORMAT}", fix=REBUILD)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        problem = f"{directory} has format version {version}, this flare_ds reads version {FORMAT_VERSION}"
        raise CacheError(problem, fix=REBUILD)


def _with_checksum(content: dict[str, Any]) -> bytes:
    checksum = json_sha256(content)
    text = json.dumps(content | {"checksum": checksum}, indent=1, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "surrogatepass")
