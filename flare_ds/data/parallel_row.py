"""One example in several languages, and the rows of a split, each put together when it is looked up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flare_ds.data.row_table import Lookup, RowTable, digests
from flare_ds.tasks.base import Answer, Row, Split


@dataclass(frozen=True)
class Side:
    """One row in one language: its fields, and the right answers where answers are free text."""

    fields: Mapping[str, str]
    answers: tuple[Answer, ...] = ()

    @classmethod
    def of(cls, row: Row) -> "Side":
        """What a data set's row says in its language."""
        return cls(row.fields, row.answers)


@dataclass(frozen=True)
class ParallelRow:
    """One example in every language.

    Attributes:
        id: of the row, in every language.
        label: index into the task's label words; None where answers are free text.
        sources: the row in each source language, in the order of the config (None: its translation failed); empty
            when the only source language is the target language.
        target: the row in the target language.
        translated: whether that is a translation of the first source, rather than the data set's own.
    """

    id: str
    label: int | None
    sources: tuple[Side | None, ...]
    target: Side
    translated: bool = False

    @property
    def read(self) -> Side:
        """The side that the data set says itself; where it says several, the target."""
        source = self.sources[0] if self.translated else None
        return source or self.target


@dataclass(frozen=True)
class ParallelRows(Lookup[ParallelRow]):
    """Rows of one split, each put together when it is looked up; attributes as of a `ParallelRow`."""

    sources: tuple[RowTable, ...]
    target: RowTable
    translated: bool = False

    def __len__(self) -> int:
        return len(self.target)

    def look_up(self, index: int) -> ParallelRow:
        """One row, put together."""
        row, others = self.target[index], [source.find(index) for source in self.sources]
        sources = tuple(None if other is None else Side.of(other) for other in others)
        return ParallelRow(row.id, row.label, sources, Side.of(row), self.translated)

    def take(self, numbers: np.ndarray) -> "ParallelRows":
        """Some of the rows."""
        sources = tuple(source.take(numbers) for source in self.sources)
        return ParallelRows(sources, self.target.take(numbers), self.translated)


@dataclass(frozen=True)
class ParallelData:
    """All rows of the languages of a config.

    Attributes:
        splits: the rows of each split, in the order of their hash.
        counts: `rows_read`, and how many were dropped for each reason (`dropped_...`).
        translations: the directories of those that were read.
    """

    splits: Mapping[Split, Sequence[ParallelRow]]
    counts: dict[str, int]
    translations: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Candidates:
    """Rows of one split within its cap.

    Attributes:
        rows: they.
        languages: what they say in every language that was read.
    """

    rows: ParallelRows
    languages: tuple[RowTable, ...]

    def digests(self, name: str) -> np.ndarray:
        """The text or passage of each row in every language: DIGEST [rows, languages]."""
        return digests(self.languages, name)

    def without(self, dropped: np.ndarray) -> "Candidates":
        """The rows that are not dropped: bool [rows]."""
        kept = np.flatnonzero(~dropped)
        return Candidates(self.rows.take(kept), tuple(table.take(kept) for table in self.languages))
