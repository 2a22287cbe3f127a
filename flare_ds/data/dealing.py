"""Which split each row of a data set belongs to.

A published split is kept. What nobody cut is cut here, by the sha256 of the row's normalised text in the language it
was written in: test (10 %), validation (5 %) or train; validation (5 %) alone is taken from train where a data set
has a test part but no validation part. So every language pair and both stages share one split, whichever languages
they read, and two rows with one text never fall into different splits.
"""

from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flare_ds.data.row_file import RowFile
from flare_ds.lookup import Lookup
from flare_ds.tasks.base import SPLITS, Pool, Row, Split, Task

HELD_OUT: Mapping[Split, tuple[Split, ...]] = {"test": ("train", "validation"), "validation": ("train",)}
"""Splits whose texts must not be seen, and the splits they must not be seen in."""


@dataclass(frozen=True)
class JoinedPool:
    """One published part of a data set in several languages.

    Attributes:
        pool: which part.
        files: its rows by language, first the language whose text decides the split.
        places: where each row stands in each of the files: int64 [rows, languages].
    """

    pool: Pool
    files: Mapping[str, RowFile]
    places: np.ndarray

    @property
    def first(self) -> RowFile:
        """The rows in the language whose text decides the split."""
        return next(iter(self.files.values()))


@dataclass(frozen=True)
class DealtRows:
    """The rows of one split, in the order of their hash.

    Attributes:
        pools: what they were dealt from.
        places: for each row, the number of its pool, and where it stands in the pool's files: int64
            [rows, 1 + languages].
    """

    pools: Sequence[JoinedPool]
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def first(self, number: int | None) -> "DealtRows":
        """The first rows (None: all)."""
        return DealtRows(self.pools, self.places[:number])

    def sides(self, number: int) -> dict[str, Row]:
        """One row in every language."""
        pool, *places = self.places[number].tolist()
        return {language: file[place] for (language, file), place in zip(self._files(pool), places, strict=True)}

    def texts(self) -> Iterator[list[bytes]]:
        """The checksums of each row's text in every language."""
        for pool, *places in self.places.tolist():
            yield [file.texts[place] for (_, file), place in zip(self._files(pool), places, strict=True)]

    def passages(self) -> Iterator[list[bytes]]:
        """The checksums of each row's long field in every language."""
        for pool, *places in self.places.tolist():
            yield [file.passages[place] for (_, file), place in zip(self._files(pool), places, strict=True)]

    def _files(self, pool: int) -> ItemsView[str, RowFile]:
        return self.pools[pool].files.items()


class OneLanguage(Lookup[Row]):
    """The rows of one split in one language, read from disk one by one."""

    def __init__(self, rows: DealtRows, language: str) -> None:
        self._rows, self._language = rows, language

    def __len__(self) -> int:
        return len(self._rows)

    def look_up(self, index: int) -> Row:
        """One row."""
        return self._rows.sides(index)[self._language]


def deal(task: Task, pools: Sequence[JoinedPool]) -> dict[Split, DealtRows]:
    """Deal the rows of all pools to the splits, each ordered by the hash of its rows."""
    keyed = sorted(
        (pool.first.order[row], pool.first.ids[row], number, index)
        for number, pool in enumerate(pools)
        for index, row in enumerate(pool.places[:, 0].tolist())
    )
    dealt: dict[Split, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    for _, _, number, index in keyed:
        pool = pools[number]
        checksum = pool.first.split_texts[pool.places[index, 0]]
        dealt[_split_of(checksum, pool.pool, task.pools)].append((number, index))
    return {split: DealtRows(pools, _places(pools, rows)) for split, rows in dealt.items()}


def pools_of(splits: Iterable[Split], pools: Sequence[Pool]) -> list[Pool]:
    """The parts of a data set that rows of these splits come from, in the order of `pools`."""
    needed = {"all" if "all" in pools else split if split in pools else "train" for split in splits}
    return [pool for pool in pools if pool in needed]


def _split_of(checksum: bytes, pool: Pool, pools: Sequence[Pool]) -> Split:
    percent = int.from_bytes(checksum[:8], "big") * 100 >> 64
    if pool == "all":
        return "test" if percent < 10 else "validation" if percent < 15 else "train"
    if pool == "train" and "validation" not in pools:
        return "validation" if percent < 5 else "train"
    return pool


def _places(pools: Sequence[JoinedPool], rows: list[tuple[int, int]]) -> np.ndarray:
    languages = pools[0].places.shape[1]
    places = np.empty((len(rows), 1 + languages), np.int64)
    for at, (number, index) in enumerate(rows):
        places[at, 0] = number
        places[at, 1:] = pools[number].places[index]
    return places
