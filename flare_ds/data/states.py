"""The store of source states: computed once, kept on disk, opened memory-mapped.

    CACHE_DIR/states-KIND-KEY/   train.states   train.offsets.npy   (validation, test likewise)   manifest.json

`SPLIT.states` holds the states of a split's rows one after another, [tokens, K, D], as raw little-endian bytes; row i
is tokens offsets[i] to offsets[i+1]. KEY begins the sha256 of everything the states depend on, all of it named in the
manifest. `states_writer` fills it.

Legend: n positions of a row, K states a position (one for each layer, or one for all), D their width.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from flare_ds import published
from flare_ds.checksums import json_sha256
from flare_ds.data.cache.format import HEADER_BYTES
from flare_ds.data.cache.section import map_array
from flare_ds.exceptions import CacheError
from flare_ds.files import opening, readable_again
from flare_ds.kept import Kind
from flare_ds.tasks.base import SPLITS

FORMAT, FORMAT_VERSION = "flare_ds states", 2
MANIFEST = "manifest.json"


class _Manifest(BaseModel):
    """What a manifest may say; it may come from anybody."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["flare_ds states"]
    format_version: int
    key: str
    fields: dict[str, Any]
    shape: list[Annotated[int, Field(gt=0, lt=2**31)]] = Field(min_length=2, max_length=2)
    dtype: Literal["bfloat16", "float32"]
    files: dict[str, published.FileRecord]


@dataclass(frozen=True)
class StoreId:
    """Which store: two runs share one exactly when both attributes are equal.

    Attributes:
        kind: whose states they are: cached (the base), mt_encoder.
        fields: everything the states depend on, as JSON values.
    """

    kind: str
    fields: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The sha256 of the fields."""
        return json_sha256({"format_version": FORMAT_VERSION, **self.fields})

    def directory(self, cache_dir: Path) -> Path:
        """Where the store lies."""
        return cache_dir / f"states-{self.kind}-{self.key[:16]}"


class StateSplit:
    """The states of one split's rows; nothing is read before it is asked for.

    Raises:
        CacheError: a file is gone or damaged.
    """

    def __init__(self, directory: Path, name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self._directory, self._name, self._dtype = directory, name, dtype
        offsets, states = offsets_file(directory, name), states_file(directory, name)
        try:
            self._offsets = _read_offsets(offsets)
            positions = int(self._offsets[-1])
            if states.stat().st_size != positions * shape[0] * shape[1] * dtype.itemsize:
                raise ValueError(f"{states} does not hold {positions} positions")
            # numpy has no bfloat16: the bytes are mapped as integers of the same size.
            carrier = np.dtype(f"<i{dtype.itemsize}")
            whole = (positions, *shape)
            with opening(states):
                self._raw = np.memmap(states, carrier, "r", shape=whole) if positions else np.empty(whole, carrier)
        except (OSError, ValueError) as error:
            raise _damaged(directory, error) from error

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def states(self, row: int) -> Tensor:
        """States of one row: [n, K, D].

        Raises:
            CacheError: the split has no such row.
        """
        if row >= len(self):
            raise _damaged(self._directory, ValueError(f"{self._name} has {len(self)} rows, and none of number {row}"))
        raw_nKD = np.array(self._raw[self._offsets[row] : self._offsets[row + 1]])
        return torch.from_numpy(raw_nKD).view(self._dtype)


@dataclass(frozen=True)
class StateStore:
    """A whole store on disk. Cheap to pickle: it holds no file.

    Attributes:
        path: its directory.
        shape: (K, D).
        dtype: of the states.
    """

    path: Path
    shape: tuple[int, int]
    dtype: torch.dtype

    def split(self, name: str) -> StateSplit:
        """Open one split, memory-mapped."""
        return StateSplit(self.path, name, self.shape, self.dtype)


def find_store(store: StoreId, cache_dir: Path) -> StateStore | None:
    """Open a store if it is there and whole; a damaged one is reported and counts as absent."""
    path = store.directory(cache_dir)
    if not path.exists():
        return None
    try:
        found = open_store(path, key=store.key)
        published.mark_used(path)
        return found
    except CacheError as error:
        print(f"computing the source states again: {error.problem}", file=sys.stderr)
        return None


def open_store(path: Path, *, key: str) -> StateStore:
    """Open a store's directory, checking the manifest, where rows begin, and the size of every file.

    Raises:
        CacheError: there is no manifest, it is damaged or of another version or key, or a file is missing or damaged.
    """
    manifest = _read_manifest(path)
    if manifest.key != key:
        raise _damaged(path, ValueError(f"{MANIFEST} has another key than {key[:16]}"))
    states, width = manifest.shape
    return StateStore(path, (states, width), getattr(torch, manifest.dtype))


def _read_manifest(path: Path) -> _Manifest:
    """Read the manifest of a store and compare the sizes of its files.

    Raises:
        CacheError: it is not there or damaged, or a file is.
    """
    try:
        manifest = published.read_manifest(path / MANIFEST, _Manifest, version=FORMAT_VERSION)
        files = {file(path, split).name for split in SPLITS for file in (states_file, offsets_file)}
        if strange := manifest.files.keys() - files:
            raise ValueError(f"{min(strange)!r} is no file of a store")
        published.check_sizes(path, manifest.files)
    except (OSError, ValueError) as error:  # pydantic's are ValueErrors, too
        raise _damaged(path, error) from error
    return manifest


def _read_offsets(path: Path) -> np.ndarray:
    """Where rows begin, from 0 up: int64, one more than there are rows."""
    length = (path.stat().st_size - HEADER_BYTES) // 8
    offsets = np.array(map_array(path, np.dtype("<i8"), length))
    if not length or offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise ValueError(f"{path} does not count up from 0")
    return offsets


def _damaged(path: Path, why: Exception) -> CacheError:
    fix = readable_again(why, damaged=f"delete {path}; the next run computes it again")
    return CacheError(f"{path} holds no whole store of source states: {why}", fix=fix)


def states_file(directory: Path, split: str) -> Path:
    """The states of a split."""
    return directory / f"{split}.states"


def offsets_file(directory: Path, split: str) -> Path:
    """Where the rows of a split begin, and where the last one ends."""
    return directory / f"{split}.offsets.npy"


STATES = Kind(
    name="states",
    manifest=MANIFEST,
    is_manifest=lambda content: content.get("format") == FORMAT,
    file="*.states",
    files=lambda path: _read_manifest(path).files,
    damaged=_damaged,
)
