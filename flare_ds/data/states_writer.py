"""Filling a store of source states: the space taken first, rows written by any process, its name given last.

All ranks see one `cache_dir`, as they do for the token cache.

Legend: n positions of a row, K states a position, D their width.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flare_ds.data.states import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    StateStore,
    StoreId,
    offsets_file,
    open_store,
    states_file,
)
from flare_ds.exceptions import ConfigError
from flare_ds.files import disk_errors, sync
from flare_ds.published import FileRecord, build_name, publish, remove_dead_builds, write_manifest

_ELSEWHERE = "set cache_dir to a directory you may write in"
_CARRIERS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Layout:
    """How much a store will hold, known before any state is computed.

    Attributes:
        lengths: n of each row, for each split.
        shape: (K, D).
        dtype: of the states.
    """

    lengths: Mapping[str, np.ndarray]
    shape: tuple[int, int]
    dtype: torch.dtype

    @cached_property
    def offsets(self) -> dict[str, np.ndarray]:
        """The token where each row begins, and where the last one ends: int64, one longer than the split."""
        return {split: np.concatenate([[0], np.cumsum(n)]).astype(np.int64) for split, n in self.lengths.items()}

    @property
    def token_bytes(self) -> int:
        """Bytes of one position."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def split_bytes(self, split: str) -> int:
        """Bytes of one split."""
        return int(self.offsets[split][-1]) * self.token_bytes


def check_size(layout: Layout, cache_dir: Path, max_gb: float, without: Sequence[str] = ()) -> None:
    """Refuse a store that is larger than allowed or than the free disk, before anything is computed.

    Args:
        layout: of the store.
        cache_dir: where it goes.
        max_gb: that are allowed.
        without: which settings of the run would do with a smaller store, or with none.

    Raises:
        ConfigError: with the size and how it comes about.
        HostError: `cache_dir` cannot be made.
    """
    tokens = sum(int(offsets[-1]) for offsets in layout.offsets.values())
    needed = tokens * layout.token_bytes
    size = (
        f"the source states take {needed / 1e9:.3g} GB ({tokens:,} tokens x {layout.shape[0]} states x "
        f"{layout.shape[1]} wide x {layout.dtype.itemsize} bytes)"
    )
    if needed > max_gb * 1e9:
        fix = ", or ".join(["raise source.max_store_gb", *without])
        raise ConfigError(f"{size}, but source.max_store_gb={max_gb:g}", fix=fix)
    with disk_errors(cache_dir, elsewhere=_ELSEWHERE):
        cache_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache_dir).free
    if needed > free:
        fix = ", or ".join(["free some space", "set cache_dir to another disk", *without])
        raise ConfigError(f"{size}, but {free / 1e9:.3g} GB are free in cache_dir={str(cache_dir)!r}", fix=fix)


class StoreWriter:
    """One build of a store: one process reserves and publishes, any number of them write rows.

    Args:
        store: which.
        layout: of it.
        cache_dir: where stores lie.
        tag: names this build, by 8 hexadecimal digits; the same in all its processes, and in no other build.
    """

    def __init__(self, store: StoreId, layout: Layout, cache_dir: Path, tag: str) -> None:
        self.store, self.layout = store, layout
        self.path = store.directory(cache_dir)
        self._partial = build_name(self.path, tag)

    def reserve(self) -> None:
        """Take the space of all states, so that no process finds the disk full later.

        Raises:
            HostError: the disk is full or not writable.
        """
        with disk_errors(self.path, elsewhere=_ELSEWHERE):
            self._partial.mkdir(parents=True)
            remove_dead_builds(self.path)
            for split in self.layout.lengths:
                with states_file(self._partial, split).open("wb") as reserved:
                    if size := self.layout.split_bytes(split):  # a split may have no source at all
                        os.posix_fallocate(reserved.fileno(), 0, size)

    def write(self, split: str, row: int, states_nKD: Tensor) -> None:
        """Write the states of one row.

        Raises:
            HostError: the disk is not writable.
        """
        layout, file = self.layout, states_file(self._partial, split)
        assert states_nKD.shape == (layout.lengths[split][row], *layout.shape), states_nKD.shape
        assert states_nKD.dtype == layout.dtype, states_nKD.dtype
        carried = states_nKD.detach().cpu().contiguous().view(_CARRIERS[layout.dtype.itemsize])
        with disk_errors(file, elsewhere=_ELSEWHERE), file.open("r+b") as place:
            place.seek(int(layout.offsets[split][row]) * layout.token_bytes)
            place.write(carried.numpy().tobytes())

    def sync(self) -> None:
        """Make what this process wrote survive a power cut.

        Raises:
            HostError: it cannot be written out.
        """
        with disk_errors(self.path, elsewhere=_ELSEWHERE):
            for split in self.layout.lengths:
                sync(states_file(self._partial, split))

    def publish(self) -> StateStore:
        """Give the store its name, unless another build was faster; all rows are written and synced.

        Raises:
            HostError: the disk is full or not writable.
        """
        with disk_errors(self.path, elsewhere=_ELSEWHERE):
            for split, offsets in self.layout.offsets.items():
                file = offsets_file(self._partial, split)
                np.save(file, offsets, allow_pickle=False)
                sync(file)
            write_manifest(self._partial / MANIFEST, self._manifest())
            publish(self._partial, self.path, partial(open_store, key=self.store.key))
        return open_store(self.path, key=self.store.key)

    def _manifest(self) -> dict[str, Any]:
        files = [file(self._partial, split) for split in self.layout.lengths for file in (states_file, offsets_file)]
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "key": self.store.key,
            "fields": dict(self.store.fields),
            "shape": list(self.layout.shape),
            "dtype": str(self.layout.dtype).removeprefix("torch."),
            "files": {file.name: FileRecord.of(file).model_dump() for file in files},
        }

    def discard(self) -> None:
        """Remove what a build left that was not published."""
        shutil.rmtree(self._partial, ignore_errors=True)
