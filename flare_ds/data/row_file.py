"""Rows of one language on disk: data sets larger than memory are read once, row by row, and looked up afterwards.

What stays in memory is what splitting and joining need of each row: its id, its label and a few checksums.
"""

import hashlib
import json
import tempfile
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from flare_ds.exceptions import DataError
from flare_ds.files import disk_errors
from flare_ds.lookup import Lookup
from flare_ds.tasks.base import Answer, Row


class RowFile(Lookup[Row]):
    """Rows in a temporary file of their own, which goes away with this object (TMPDIR says where).

    Args:
        rows: read once.
        name: what they are, for messages.
        split_fields: fields whose text decides a split made by us.
        long_field: field whose text is a passage, which several rows may be about.

    Attributes:
        ids: of each row.
        labels: of each row; None where answers are free text.
        order: sha256 of each row's normalised text, by which rows are ordered; empty where all its fields are.
        texts: the same, but rows are equal only if each of their fields is.
        split_texts: sha256 of each row's normalised `split_fields`.
        passages: sha256 of each row's normalised `long_field`.

    Raises:
        DataError: an id occurs twice.
        HostError: the place for temporary files is full.
    """

    def __init__(self, rows: Iterable[Row], *, name: str, split_fields: Sequence[str], long_field: str) -> None:
        with _disk_errors():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as this object)
        self._starts = array("q", [0])
        self.ids: list[str] = []
        self.labels: list[int | None] = []
        self.order: list[bytes] = []
        self.texts: list[bytes] = []
        self.passages: list[bytes] = []
        self.split_texts: list[bytes] = []
        for row in rows:
            self._write(row)
            self.ids.append(row.id)
            self.labels.append(row.label)
            # Where two are the same bytes, there is no second object in memory.
            one, whole = len(row.fields) == 1, tuple(row.fields) == tuple(split_fields)
            order = text_checksum(row.fields.values())
            self.order.append(order)
            self.texts.append(order if one else row_checksum(row.fields.values()))
            self.passages.append(order if one else text_checksum([row.fields[long_field]]))
            self.split_texts.append(order if whole else text_checksum(row.fields[field] for field in split_fields))
        with _disk_errors():
            self._file.flush()
        self.places = {row_id: place for place, row_id in enumerate(self.ids)}
        if len(self.places) < len(self.ids):
            twice = next(row_id for place, row_id in enumerate(self.ids) if self.places[row_id] != place)
            raise DataError(f"row {twice} occurs twice in {name}", fix="give every row its own id")

    def _write(self, row: Row) -> None:
        line = json.dumps([row.id, row.fields, row.label, [(a.text, a.start) for a in row.answers]]).encode()
        with _disk_errors():
            self._file.write(line)
        self._starts.append(self._starts[-1] + len(line))

    def __len__(self) -> int:
        return len(self.ids)

    def look_up(self, index: int) -> Row:
        """One row, read from the file."""
        start, end = self._starts[index], self._starts[index + 1]
        self._file.seek(start)
        row_id, fields, label, answers = json.loads(self._file.read(end - start))
        return Row(row_id, fields, label, tuple(Answer(text, place) for text, place in answers))


def _disk_errors() -> AbstractContextManager[None]:
    return disk_errors(Path(tempfile.gettempdir()), elsewhere="set TMPDIR to a directory with room for all rows")


def normalise(text: str) -> str:
    """The form in which two texts count as the same: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_checksum(texts: Iterable[str]) -> bytes:
    """The sha256 of some texts as one, normalised; empty if there is nothing in them."""
    text = normalise("\n".join(texts))
    return hashlib.sha256(text.encode("utf-8")).digest() if text else b""


def row_checksum(texts: Iterable[str]) -> bytes:
    """The sha256 of some texts, each normalised, as a row of them; empty if there is nothing in any."""
    row = [normalise(text) for text in texts]
    # A separator that no normalised text holds: it is white space.
    return hashlib.sha256("\x1f".join(row).encode("utf-8")).digest() if any(row) else b""
