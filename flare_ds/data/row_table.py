"""Rows of one language in an Arrow table on disk, memory-mapped: data sets may be larger than memory.

    id | label | answers | starts | order | text | passage | percent (see `digests`) | a column for each field

A table is written once, row by row; each other view of its rows (a split of them, in an order) is a list of places.
"""

import mmap
import tempfile
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from flare_ds.data.digests import DIGEST, row_keys
from flare_ds.files import disk_errors
from flare_ds.tasks.base import Answer, Row, Task
from flare_ds.tasks.probes import said_fields

T = TypeVar("T", covariant=True)
_BATCH_ROWS = 1024
_OWN_COLUMNS = pa.schema(
    [
        ("id", pa.large_string()),
        ("label", pa.int64()),
        ("answers", pa.large_list(pa.large_string())),
        ("starts", pa.large_list(pa.int64())),
        *((name, pa.binary(DIGEST.itemsize)) for name in ("order", "text", "passage")),
        ("percent", pa.uint8()),
    ]
)
_SAID = 4
"""The first of them say what the row says; the others are its keys."""


class Lookup(Sequence[T]):
    """A sequence by its length and `look_up`; it has no slices, which would hold many items at once."""

    @abstractmethod
    def look_up(self, index: int) -> T:
        """The item at a place from 0 to the length less one."""

    def __getitem__(self, index: int) -> T:  # type: ignore[override]
        assert isinstance(index, int), "items are looked up one by one"
        return self.look_up(range(len(self))[index])


class RowTable(Lookup[Row]):
    """Rows, each read from disk when it is looked up.

    Args:
        table: that holds them.
        places: where each of them stands in the table: int64 [rows]; -1: there is no such row.
    """

    def __init__(self, table: pa.Table, places: np.ndarray) -> None:
        self._table, self._places = table, places
        batches, own = table.to_batches(), len(_OWN_COLUMNS)
        self._fields = table.column_names[own:]
        self._columns: list[list[pa.Array]] = [batch.columns[:_SAID] + batch.columns[own:] for batch in batches]
        self._starts = list(accumulate((batch.num_rows for batch in batches), initial=0))

    @classmethod
    def write(cls, rows: Iterable[Row], task: Task, language: str) -> "RowTable":
        """Write rows into a temporary file, which goes away with the table (TMPDIR says where it lies).

        Args:
            rows: read once.
            task: whose they are; fields that it does not name are left out.
            language: whose prompt says them; a field that it does not say tells no texts apart.

        Raises:
            HostError: the place for temporary files is full.
        """
        schema = pa.schema([*_OWN_COLUMNS, *((field, pa.large_string()) for field in task.fields)])
        rows, said = iter(rows), said_fields(task, language)
        with _disk_errors():
            file = tempfile.TemporaryFile()  # noqa: SIM115 (closing it fails where writing did)
            writer = pa.ipc.new_file(file, schema)
        while some := list(islice(rows, _BATCH_ROWS)):
            batch = pa.record_batch(_columns(some, schema, task, said), schema=schema)
            with _disk_errors():
                writer.write_batch(batch)
        with _disk_errors():
            writer.close()
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            file.close()
        table = pa.ipc.open_file(pa.py_buffer(mapped)).read_all()
        return cls(table, np.arange(table.num_rows))

    @classmethod
    def concatenate(cls, tables: "Sequence[RowTable]") -> "RowTable":
        """All rows of some tables, one table behind another; nothing is copied."""
        starts = accumulate((table._table.num_rows for table in tables), initial=0)
        places = np.concatenate([start + table._places for start, table in zip(starts, tables, strict=False)])
        return cls(pa.concat_tables(table._table for table in tables), places)

    def take(self, numbers: np.ndarray) -> "RowTable":
        """Some of the rows, in another order; -1: no row."""
        return RowTable(self._table, _pick(self._places, numbers, np.int64(-1)))

    def first(self, number: int | None) -> "RowTable":
        """The first rows (None: all)."""
        return RowTable(self._table, self._places[:number])

    def __len__(self) -> int:
        return len(self._places)

    @property
    def ids(self) -> pa.ChunkedArray:
        """The id of each row."""
        return self._column("id").take(pa.array(self._places))

    @property
    def labels(self) -> np.ndarray:
        """The label of each row: int64; -1 where answers are free text."""
        return self._column("label").fill_null(-1).to_numpy()[self._places]

    @property
    def percents(self) -> np.ndarray:
        """The percent of each row: uint8."""
        return self._column("percent").to_numpy()[self._places]

    def digests(self, name: str) -> np.ndarray:
        """The order, text or passage of each row: DIGEST; none where there is no row."""
        chunks = self._column(name).chunks
        pieces = [np.frombuffer(chunk.buffers()[1], DIGEST, len(chunk)) for chunk in chunks]
        return _pick(np.concatenate([np.empty(0, DIGEST), *pieces]), self._places, np.bytes_(b""))

    def _column(self, name: str) -> pa.ChunkedArray:
        return self._table.column(_OWN_COLUMNS.get_field_index(name))  # a field may have that name, too

    def look_up(self, index: int) -> Row:
        """One row."""
        row = self.find(index)
        assert row is not None, f"there is no row {index}"
        return row

    def find(self, index: int) -> Row | None:
        """One row, if there is one."""
        place = int(self._places[index])
        if place < 0:
            return None
        batch = bisect_right(self._starts, place) - 1
        at = place - self._starts[batch]
        row_id, label, texts, starts, *fields = (column[at].as_py() for column in self._columns[batch])
        answers = () if texts is None else tuple(map(Answer, texts, starts))
        return Row(row_id, dict(zip(self._fields, fields, strict=True)), label, answers)


def digests(tables: Iterable[RowTable], name: str) -> np.ndarray:
    """The order, text or passage of each row in several languages: DIGEST [rows, languages]."""
    return np.stack([table.digests(name) for table in tables], axis=1)


def _pick(values: np.ndarray, places: np.ndarray, none: np.generic) -> np.ndarray:
    """The values at some places; `none` at -1."""
    picked = np.full(len(places), none, values.dtype)
    picked[places >= 0] = values[places[places >= 0]]
    return picked


def _columns(rows: Sequence[Row], schema: pa.Schema, task: Task, said: Sequence[str]) -> list[pa.Array]:
    own = [
        [row.id for row in rows],
        [row.label for row in rows],
        [[answer.text for answer in row.answers] or None for row in rows],
        [[answer.start for answer in row.answers] or None for row in rows],
    ]
    keys = zip(*(row_keys(row.fields, task, said) for row in rows), strict=True)
    texts = ([row.fields[field] for row in rows] for field in task.fields)
    return [pa.array(column, kind) for column, kind in zip(chain(own, keys, texts), schema.types, strict=True)]


def _disk_errors() -> AbstractContextManager[None]:
    return disk_errors(Path(tempfile.gettempdir()), elsewhere="set TMPDIR to a directory with room for all rows")
