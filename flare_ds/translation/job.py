"""What is to be translated for one split: which rows, from which language into which."""

from collections.abc import Sequence
from dataclasses import dataclass

from flare_ds.tasks.base import Row, Split


@dataclass(frozen=True)
class TranslationJob:
    """Rows of one split whose other side is to be machine-translated.

    Attributes:
        split: which split they belong to.
        from_language: the language the rows are in, as an NLLB tag.
        to_language: the language of the other side, as an NLLB tag.
        rows: what is translated: every field, and where the answers stand in the long field.
        long_field: the field the answers stand in.
    """

    split: Split
    from_language: str
    to_language: str
    rows: Sequence[Row]
    long_field: str
