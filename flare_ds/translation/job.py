"""What is to be translated for one split: which rows, from which language into which."""

from collections.abc import Sequence
from dataclasses import dataclass

from flare_ds.tasks.base import Row, Split
from flare_ds.translation.engines import Direction


@dataclass(frozen=True)
class TranslationJob:
    """Rows of one split whose other side is to be machine-translated.

    Attributes:
        split: which split they belong to.
        direction: from the language the rows are in into that of the other side.
        rows: what is translated: every field, and where the answers stand in the long field.
        long_field: the field the answers stand in.
    """

    split: Split
    direction: Direction
    rows: Sequence[Row]
    long_field: str

    @property
    def held_out(self) -> bool:
        """Whether the texts must not depend on the answers."""
        return self.split != "train"
