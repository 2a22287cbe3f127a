"""Which rows of a data set belong together, and which split each belongs to.

Languages are joined by row id: gaps that are documented are counted, all others are refused.

A published split is kept. What nobody cut is cut here, by the sha256 of the row's normalised text in the language it
was written in (in the task's first, where it does not say which that is): test (10 %), validation (5 %) or train;
validation (5 %) alone is taken from train where a data set has a test part but no validation part. So every language
pair and both stages share one split, whichever languages they read, and two rows with one text never fall into
different splits.

Legend: n rows, l languages.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from flare_ds.data.digests import arrow
from flare_ds.data.row_table import RowTable, digests
from flare_ds.exceptions import DataError
from flare_ds.tasks.base import SPLITS, Pool, Split, Task
from flare_ds.tasks.check import checked_rows

HELD_OUT: Mapping[Split, tuple[Split, ...]] = {"test": ("train", "validation"), "validation": ("train",)}
"""Splits whose texts must not be seen, and the splits they must not be seen in."""
_FIX = (
    "take all languages from the same release; in your own files, correct that row or remove it from every language; "
    "if a language has only some of the rows, say so in `covers` of a task in Python (docs/tasks.md). (parallel: "
    "false is only for rows that are not translations of one another: else test rows of one language are trained on "
    "in another)"
)


JoinedRows = Mapping[str, RowTable]
"""Rows in several languages: equally many in each, first the language whose text decides the split."""


def some(rows: JoinedRows, which: np.ndarray) -> JoinedRows:
    """Some of the rows, by their numbers."""
    return {language: table.take(which) for language, table in rows.items()}


def read_joined(
    task: Task, data_dir: str | None, languages: Sequence[str], pool: Pool, counts: Counter[str]
) -> JoinedRows:
    """Read one pool in several languages and join the rows by id; rows with an empty text are dropped and counted.

    Args:
        task: what is read.
        data_dir: from where; None: the hub.
        languages: first the one whose text decides the split.
        pool: which part.
        counts: `rows_read` and `dropped_...` are added to.

    Raises:
        DataError: a language, a file or a row is missing or malformed, or the sides are misaligned.
    """
    sides = {language: _read(task, data_dir, language, pool) for language in languages}
    first = languages[0]
    ids = sides[first].ids
    whole = np.ones(len(ids), bool)
    places: dict[str, np.ndarray] = {}
    for language, side in sides.items():
        covered = _covered(task, ids, language)
        places[language] = _places(task, language, side, ids, covered, first)
        _check_labels(task, language, side, sides[first].labels, places[language], first)
        whole &= covered
    joined = {language: side.take(places[language][whole]) for language, side in sides.items()}
    filled = (digests(joined.values(), "text") != b"").all(axis=1)
    counts["rows_read"] += len(ids)
    counts["dropped_not_in_a_language"] += int((~whole).sum())
    counts["dropped_empty_text"] += int((~filled).sum())
    return some(joined, np.flatnonzero(filled))


def deal(task: Task, pools: Mapping[Pool, JoinedRows]) -> dict[Split, JoinedRows]:
    """Deal the rows of all pools to the splits, each ordered by the hash of its rows."""
    from pyarrow.compute import sort_indices  # takes longer to import than most commands have rows to read

    parts = [*pools.values()]
    whole = {language: RowTable.concatenate([part[language] for part in parts]) for language in parts[0]}
    first = next(iter(whole.values()))
    keys = pa.table({"order": arrow(first.digests("order")), "id": first.ids})
    order_n = sort_indices(keys, sort_keys=[("order", "ascending"), ("id", "ascending")]).to_numpy()
    sizes = [len(next(iter(part.values()))) for part in parts]
    percents = np.split(first.percents, np.cumsum(sizes)[:-1])
    splits_n = np.concatenate([_splits_of(part, pool, task.pools) for pool, part in zip(pools, percents, strict=True)])
    dealt_n = splits_n[order_n]
    return {split: some(whole, order_n[dealt_n == number]) for number, split in enumerate(SPLITS)}


def pools_of(splits: Iterable[Split], pools: Sequence[Pool]) -> list[Pool]:
    """The parts of a data set that rows of these splits come from, in the order of `pools`."""
    needed = {"all" if "all" in pools else split if split in pools else "train" for split in splits}
    return [pool for pool in pools if pool in needed]


def is_cut(pool: Pool, pools: Sequence[Pool]) -> bool:
    """Whether a part of a data set is cut here into several splits, given all its parts."""
    return pool == "all" or (pool == "train" and "validation" not in pools)


def _splits_of(percents_n: np.ndarray, pool: Pool, pools: Sequence[Pool]) -> np.ndarray:
    """The number of the split of each row of a pool."""
    train, validation, test = map(np.uint8, range(3))
    if not is_cut(pool, pools):
        return np.full(len(percents_n), SPLITS.index(pool), np.uint8)
    if pool == "all":
        return np.select([percents_n < 10, percents_n < 15], [test, validation], train)
    return np.where(percents_n < 5, validation, train)


def _read(task: Task, data_dir: str | None, language: str, pool: Pool) -> RowTable:
    from pyarrow.compute import greater

    name = f"language {language!r} of task {task.name}"
    table = RowTable.write(checked_rows(task.read(data_dir, language, pool), task, name), task, language)
    counted = table.ids.value_counts()
    if len(counted) < len(table):
        twice = counted.field("values").filter(greater(counted.field("counts"), 1))[0]
        raise DataError(f"the row with id {_quoted(twice)} occurs twice in {name}", fix="give every row its own id")
    return table


def _covered(task: Task, ids: pa.ChunkedArray, language: str) -> np.ndarray:
    """Which rows the data set has in a language; few tasks lack any, and no other is asked row by row."""
    if type(task).covers is Task.covers:
        return np.ones(len(ids), bool)
    return np.fromiter((task.covers(row_id.as_py(), language) for row_id in ids), bool, len(ids))


def _places(
    task: Task, language: str, side: RowTable, ids: pa.ChunkedArray, covered: np.ndarray, first: str
) -> np.ndarray:
    """Where each row of the first language stands in another; -1 where the data set lacks it there.

    Raises:
        DataError: the other has other rows.
    """
    from pyarrow.compute import index_in, is_in

    found = side.ids
    places = index_in(ids, value_set=found).fill_null(-1).to_numpy()
    known = is_in(found, value_set=ids.filter(pa.array(covered))).to_numpy()
    # The first in the files' own order, which is where a reader would look.
    for what, among, wrong in (("is missing", ids, covered & (places < 0)), ("is unexpected", found, ~known)):
        if wrong.any():
            sizes = f"{len(found)} rows in {language!r}, {covered.sum()} expected from {first!r}"
            row = f"the row with id {_quoted(among[int(wrong.argmax())])}"
            raise DataError(f"task {task.name}: {row} {what} in language {language!r} ({sizes})", fix=_FIX)
    return places


def _check_labels(
    task: Task, language: str, side: RowTable, labels: np.ndarray, places: np.ndarray, first: str
) -> None:
    found, right = side.labels, np.empty(len(side), np.int64)
    right[places[places >= 0]] = labels[places >= 0]
    if (differ := found != right).any():
        row = int(differ.argmax())
        problem = f"task {task.name}: the row with id {_quoted(side.ids[row])} has label {_word(task, found[row])}"
        problem += (
            f" in {language!r} but {_word(task, right[row])} in {first!r} ({differ.sum():,} of {len(side):,} differ)"
        )
        numbers = "if a table has numbers as labels, list the task's labels in their order, or set label_values"
        raise DataError(problem, fix=f"{_FIX}; {numbers}")


def _quoted(row_id: pa.Scalar) -> str:
    """An id as a message says it: `'2 '` is another than `'2'`, and neither is a place in a file."""
    return repr(row_id.as_py())


def _word(task: Task, label: int) -> str:
    return "none" if label < 0 else repr(task.word_lists[0][label])
