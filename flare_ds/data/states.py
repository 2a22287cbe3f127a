"""The store of source states: computed once, kept on disk, opened memory-mapped.

    CACHE_DIR/states-KIND-KEY/   train.states   train.offsets.npy   (validation, test likewise)   manifest.json

`SPLIT.states` holds the states of a split's rows one after another, [tokens, K, D], as raw little-endian bytes; row i
is tokens offsets[i] to offsets[i+1]. KEY begins the sha256 of everything the states depend on, all of it named in the
manifest. Every file appears whole under its name and the manifest comes last, so a directory with a manifest is
whole. `states_writer` fills it.

Legend: n positions of a row, K states a position (one for each layer, or one for all), D their width.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flare_ds.checksums import json_sha256
from flare_ds.exceptions import CacheError

FORMAT, FORMAT_VERSION = "flare_ds states", 1
MANIFEST = "manifest.json"


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

    Args:
        directory: of the store.
        name: of the split.
        shape: (K, D).
        dtype: of the states.
    """

    def __init__(self, directory: Path, name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._offsets = np.load(offsets_file(directory, name), allow_pickle=False)
        # numpy has no bfloat16: the bytes are mapped as integers of the same size.
        carrier = np.dtype(f"<i{dtype.itemsize}")
        self._raw = np.memmap(states_file(directory, name), carrier, "r", shape=(int(self._offsets[-1]), *shape))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def states(self, row: int) -> Tensor:
        """States of one row: [n, K, D]."""
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
        return open_store(path)
    except CacheError as error:
        print(f"computing the source states again: {error.problem}", file=sys.stderr)
        return None


def open_store(path: Path) -> StateStore:
    """Open a store's directory, checking the manifest and the size of every file.

    Raises:
        CacheError: there is no manifest, it is damaged or of another version, or a file is missing or cut off.
    """
    fix = f"delete {path}; the next run computes it again"
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if (manifest["format"], manifest["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise CacheError(f"{path} is not a store of version {FORMAT_VERSION} of {FORMAT}", fix=fix)
        states, width = manifest["shape"]
        dtype: torch.dtype = getattr(torch, manifest["dtype"])
        for name, bytes_ in manifest["bytes"].items():
            if (path / name).stat().st_size != bytes_:
                raise CacheError(f"{path / name} does not have its {bytes_} bytes", fix=fix)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{path} holds no whole store of source states: {error}", fix=fix) from error
    return StateStore(path, (states, width), dtype)


def states_file(directory: Path, split: str) -> Path:
    """The states of a split."""
    return directory / f"{split}.states"


def offsets_file(directory: Path, split: str) -> Path:
    """Where the rows of a split begin, and where the last one ends."""
    return directory / f"{split}.offsets.npy"
