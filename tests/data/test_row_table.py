"""Rows on disk: what was written comes back, in any order; and where there is no room for it."""

import subprocess
import sys
from collections.abc import Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flare_ds.data.digests import among, cluster_of
from flare_ds.data.row_table import RowTable
from flare_ds.tasks.base import Answer, Pool, Row, Task
from tests.toy import REPOSITORY

FULL = """
import resource, signal
from flare_ds.data.row_table import RowTable
from flare_ds.exceptions import HostError
from flare_ds.tasks.base import Row
from tests.data.test_row_table import Fields
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    RowTable.write((Row(str(n), {"text": "word " * 100}, 0) for n in range({rows})), Fields("text"), "en")
except HostError as error:
    print(error)
"""


class Fields(Task):
    """A task of some fields."""

    def __init__(self, *fields: str) -> None:
        self.fields = self.split_fields = fields
        self.long_field = fields[0]

    def read(self, data_dir: str | None, language: str, pool: Pool) -> list[Row]:
        return []

    def prompt(self, fields: Mapping[str, str]) -> str:
        return " ".join(fields.values())


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
ANSWER = st.builds(Answer, TEXT, st.none() | st.integers(0, 2**40))
ROW = st.builds(
    Row,
    TEXT,
    st.fixed_dictionaries({"question": TEXT, "id": TEXT}),  # a field may be called as a column of the table's own
    st.none() | st.integers(0, 9),
    st.lists(ANSWER, max_size=3).map(tuple),
)


@given(st.lists(ROW, max_size=9), st.lists(ROW, max_size=5), st.randoms())
def test_rows_come_back_in_any_order(one: list[Row], other: list[Row], draw) -> None:
    tables = [RowTable.write(iter(rows), Fields("question", "id"), "en") for rows in (one, other)]
    rows, table = one + other, RowTable.concatenate(tables)
    assert list(table) == rows and table.ids.to_pylist() == [row.id for row in rows]
    places = [draw.randrange(-1, len(rows)) for _ in range(12)]
    taken = table.take(np.array(places)).take(np.arange(11, -1, -1))
    assert [taken.find(number) for number in range(12)] == [rows[at] if at >= 0 else None for at in reversed(places)]


def test_fields_that_the_task_does_not_name_and_their_order_tell_no_rows_apart() -> None:
    fields = [
        {"text": "a text", "note": "b"},
        {"text": "A  Text", "note": "b", "url": "1"},
        {"url": "2", "note": "b", "text": "a text"},
    ]
    table = RowTable.write((Row(str(i), row, 0) for i, row in enumerate(fields)), Fields("text", "note"), "en")
    assert all(len(set(table.digests(name))) == 1 for name in ("order", "text", "passage"))
    assert len(set(table.percents)) == 1


def test_rows_that_say_nothing_where_rows_may_be_alike_have_nothing_in_common() -> None:
    """Titles without a text: they go to all splits, as others do, and each is a draw of its own."""
    task = Fields("text", "title")
    task.split_fields = ("text",)
    rows = [Row(str(number), {"title": f"title {number % 400}", "text": " "}, 0) for number in range(500)]
    percents = RowTable.write(iter(rows), task, "en").percents
    assert len(set(percents)) > 90 and percents[:100].tolist() == percents[400:].tolist()
    clusters = [cluster_of(row.fields, task) for row in rows]
    assert len(set(clusters)) == 400 and clusters[:100] == clusters[400:]


def test_rows_of_many_batches_are_found() -> None:
    rows = [Row(str(number), {"text": "word" * (number % 7)}, number) for number in range(3000)]
    table = RowTable.concatenate([RowTable.write(some, Fields("text"), "en") for some in (rows[:1500], rows[1500:])])
    assert list(table) == rows and table.labels.tolist() == list(range(3000))


@given(st.lists(st.tuples(*[st.binary(max_size=2)] * 2)), st.lists(st.binary(max_size=2)))
def test_a_text_is_among_those_seen_unless_it_is_none(rows: list[tuple[bytes, bytes]], seen: list[bytes]) -> None:
    seen_, held = {text.rstrip(b"\0") for text in seen} - {b""}, [[text.rstrip(b"\0") for text in row] for row in rows]
    found = among(np.array(rows, "S16").reshape(-1, 2), np.array(seen, "S16"))
    assert found.tolist() == [not seen_.isdisjoint(row) for row in held]


def test_no_room_for_temporary_files_is_told_with_the_setting() -> None:
    for rows in (9, 5000):  # met when the last rows are written out, and before
        command = [sys.executable, "-c", FULL.replace("{rows}", str(rows))]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert "cannot write" in done.stdout and "set TMPDIR" in done.stdout, done.stdout + done.stderr
