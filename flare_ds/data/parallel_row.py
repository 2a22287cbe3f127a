"""One example in several languages, and the rows of a split, each put together when it is looked up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flare_ds.lookup import Lookup
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
    """

    id: str
    label: int | None
    sources: tuple[Side | None, ...]
    target: Side


class ParallelRows(Lookup[ParallelRow]):
    """Rows of one split, each put together when it is looked up.

    Args:
        build: makes the row with a number.
        numbers: the rows' numbers, in order.
    """

    def __init__(self, build: Callable[[int], ParallelRow], numbers: Sequence[int]) -> None:
        self._build, self._numbers = build, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def look_up(self, index: int) -> ParallelRow:
        """One row, put together."""
        return self._build(self._numbers[index])


@dataclass(frozen=True)
class ParallelData:
    """All rows of the languages of a config.

    Attributes:
        splits: the rows of each split, in the order of their hash.
        counts: `rows_read`, and how many were dropped for each reason (`dropped_...`).
    """

    splits: Mapping[Split, Sequence[ParallelRow]]
    counts: dict[str, int]


@dataclass(frozen=True)
class Candidates:
    """Rows of one split within its cap.

    Attributes:
        build: makes the row with a number.
        texts: by the number of each row, the checksums of its text in every language.
        passages: likewise of its long field.
    """

    build: Callable[[int], ParallelRow]
    texts: Mapping[int, Sequence[bytes]]
    passages: Mapping[int, Sequence[bytes]]
