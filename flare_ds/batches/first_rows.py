"""A cache of which only the first rows of each split are seen; rows stand in the order of a hash, so these are a fixed
random part of them.

Legend: n rows that are seen.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from flare_ds.data.cache import Cache, CacheSplit


@dataclass(frozen=True)
class FirstRows(Cache):
    """The first rows of each split of a cache (None: all), and what else belongs to the last of their examples."""

    rows: int | None

    def split(self, name: str) -> CacheSplit:
        """Open `train`, `validation` or `test`."""
        whole = super().split(name)
        return whole if self.rows is None or self.rows >= len(whole) else _FirstRows(self, name, self.rows)


class _FirstRows(CacheSplit):
    """The first rows of a split; whatever looks up one row needs no change."""

    def __init__(self, cache: Cache, name: str, rows: int) -> None:
        super().__init__(cache.path, cache.manifest, name)
        seen = slice(int(np.searchsorted(self.examples, self.examples[rows - 1], side="right")))
        self._arguments = (cache, name, rows)
        self._seen = seen
        self.labels, self.examples, self.clusters = (x[seen] for x in (self.labels, self.examples, self.clusters))

    def __reduce__(self) -> tuple[Any, ...]:
        return _FirstRows, self._arguments

    def prompt_lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt, 0 where a row has none in this stream: int32 [n]."""
        return super().prompt_lengths(stream)[self._seen]

    def lengths(self, stream: str) -> np.ndarray:
        """Tokens in each prompt and answer together: int [n]."""
        return super().lengths(stream)[self._seen]
