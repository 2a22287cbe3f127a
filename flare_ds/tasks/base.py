"""What a task is: rows that are the same in several languages, a prompt, and the label words that may answer it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from flare_ds.exceptions import DataError
from flare_ds.registry import Registry, suggestion


@dataclass(frozen=True)
class Row:
    """One labelled example in one language.

    Attributes:
        id: the same in every language, so the two sides of a pair meet by it.
        fields: the texts the prompt is made of, by name; each may be empty, none is missing.
        label: index into the task's `labels`.
    """

    id: str
    fields: Mapping[str, str]
    label: int


class Task(ABC):
    """A labelled data set that exists, row by row, in several languages.

    Attributes:
        name: how configs call it.
        version: raised whenever the same files would give other rows or prompts, so that caches are rebuilt.
        languages: codes of the languages it has.
        original_language: the one the rows were written in; its text decides the split.
        labels: the label words, in the order of `Row.label`.
        long_field: the field that is cut when a prompt is too long.
        metric: how predictions are scored.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    languages: ClassVar[tuple[str, ...]]
    original_language: ClassVar[str]
    labels: ClassVar[tuple[str, ...]]
    long_field: ClassVar[str]
    metric: ClassVar[Literal["accuracy"]] = "accuracy"

    @abstractmethod
    def read(self, directory: Path, language: str) -> list[Row]:
        """Read every row the data set has in one language.

        Raises:
            DataError: the task lacks the language, or a file is missing or malformed (naming file and row).
        """

    @abstractmethod
    def prompt(self, fields: Mapping[str, str]) -> str:
        """Render one row; the text ends so that a space and a label word continue it."""

    def covers(self, row_id: str, language: str) -> bool:
        """Whether the data set has this row in that language: False only for gaps known and documented."""
        return True

    def check_language(self, language: str) -> None:
        """Refuse a language the task lacks.

        Raises:
            DataError: naming the language, with the nearest one the task has.
        """
        if language not in self.languages:
            raise DataError(f"task {self.name} has no language {language!r}", fix=suggestion(language, self.languages))


TASKS: Registry[Task] = Registry("task")
