"""Reading a manifest. Which sections there are, and what they hold, follows from its streams, splits and label words.

A cache may come from anybody, and its own checksum proves nothing: a section is mapped only as one of these few types,
under a name made here, in a length that agrees with all others.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from flare_ds import published
from flare_ds.checksums import json_sha256
from flare_ds.data.cache.format import (
    FORMAT_VERSION,
    HEADER_BYTES,
    MANIFEST,
    REBUILD,
    Manifest,
    SplitSummary,
    section_name,
    token_dtype,
)
from flare_ds.data.streams import are_streams, is_base
from flare_ds.exceptions import CacheError
from flare_ds.files import readable_again
from flare_ds.tasks.base import SPLITS

_ROW, _PLACE, _BYTE = "<i4", "<i8", "|u1"
_MOST_ROWS = 2**31 - 1
"""Rows are numbered by int32."""


class _Fields(BaseModel):
    """The fields that are read by name; there are others."""

    model_config = ConfigDict(extra="allow", strict=True)

    task: str
    task_version: int
    source_language: str
    target_language: str
    extra_source_languages: list[str] = []
    tokenizer_sha256: str


def read_manifest(directory: Path) -> Manifest:
    """Read and check `manifest.json`.

    Raises:
        CacheError: there is none, it is damaged or edited, or it is of another format version.
    """
    try:
        manifest = published.read_manifest(directory / MANIFEST, Manifest, version=FORMAT_VERSION)
        _check(manifest)
        return manifest
    except OSError as error:
        problem = f"{directory} holds no finished cache: {MANIFEST}: {error.strerror}"
        raise CacheError(problem, fix=readable_again(error, damaged=REBUILD)) from error
    except ValueError as error:  # pydantic's are, too
        raise CacheError(f"{directory / MANIFEST} cannot be used: {error}", fix=REBUILD) from error


def _check(manifest: Manifest) -> None:
    """Refuse a manifest that disagrees with itself, whatever its checksum says.

    Raises:
        ValueError: naming the first thing that cannot be.
    """
    _Fields.model_validate(manifest.fields)
    _refuse(manifest.key != json_sha256(manifest.fields), "key is not the checksum of fields")
    streams = list(manifest.streams)
    _refuse(not are_streams(streams), f"streams are {streams}")
    _refuse(not manifest.splits or not set(manifest.splits) <= set(SPLITS), f"splits are {list(manifest.splits)}")
    _refuse("rows_read" not in manifest.counts, "counts do not say rows_read")
    _check_ids(manifest)
    for name, split in manifest.splits.items():
        _check_split(name, split, streams)
    _check_sections(manifest)


def _refuse(wrong: bool, problem: str) -> None:
    if wrong:
        raise ValueError(problem)


def _check_ids(manifest: Manifest) -> None:
    size = manifest.vocabulary_size
    _refuse(not 0 < size <= 2**32, f"vocabulary_size is {size}")
    _refuse(len(manifest.label_tokens) != len(manifest.labels), "label_tokens are not one for each of labels")
    special = [manifest.pad_id, *([] if manifest.eos_id is None else [manifest.eos_id])]
    special += [*manifest.prefix_ids, *manifest.suffix_ids, *manifest.newline_ids]
    ids = [*special, *(id for ids in manifest.label_tokens for id in ids)]
    wrong = [id for id in ids if id >= size]
    _refuse(bool(wrong), f"token id {wrong[:1]} is not below vocabulary_size {size}")


def _check_split(name: str, split: SplitSummary, streams: list[str]) -> None:
    sizes = (split.windowed, split.examples, split.rows, _MOST_ROWS)
    _refuse(list(sizes) != sorted(sizes) or not split.examples, f"{name} has rows, examples and windows {sizes[:3]}")
    for counted in (split.tokens, split.truncated, split.longest_prompt):
        _refuse(list(counted) != streams, f"{name} counts {list(counted)}")


def _check_sections(manifest: Manifest) -> None:
    wanted = dict(_sections(manifest))
    if strange := wanted.keys() ^ manifest.sections.keys():
        raise ValueError(f"section {min(strange)!r} is one too many, or missing")
    for name, (dtypes, length) in wanted.items():
        section = manifest.sections[name]
        _refuse(section.dtype not in dtypes, f"section {name} has dtype {section.dtype!r}, not {' or '.join(dtypes)}")
        found = section.shape[0] if len(section.shape) == 1 else None
        _refuse(found is None or length not in (None, found), f"section {name} has shape {section.shape}")
        size = HEADER_BYTES + (found or 0) * np.dtype(section.dtype).itemsize
        _refuse(section.bytes != size, f"section {name} has {section.bytes} bytes, not {size}")


def _sections(manifest: Manifest) -> Iterator[tuple[str, tuple[tuple[str, ...], int | None]]]:
    """Every section's name, the types it may have, and its length; None: that of its texts."""
    for name, split in manifest.splits.items():
        for part in ("labels", "examples", *(f"{stream}.prompt_lengths" for stream in manifest.streams)):
            yield section_name(name, part), ((_ROW,), split.rows)
        yield section_name(name, "clusters"), ((_PLACE,), split.rows)
        for text in _texts(manifest):
            yield section_name(name, text), ((_BYTE,), None)
        for item in (*_texts(manifest), *manifest.streams):
            yield section_name(name, item, "offsets"), ((_PLACE,), split.rows + 1)
        for stream in manifest.streams:
            yield section_name(name, stream, "tokens"), (_token_dtypes(manifest, stream), split.tokens[stream])


def _texts(manifest: Manifest) -> Iterable[str]:
    return ("ids",) if manifest.labels else ("ids", "golds")


def _token_dtypes(manifest: Manifest, stream: str) -> tuple[str, ...]:
    """The manifest tells the base's vocabulary alone."""
    return (token_dtype(manifest.vocabulary_size).str,) if is_base(stream) else ("<u2", "<u4")
