"""Joining the languages of a data set by row id: gaps that are documented are counted, all others are refused."""

from collections.abc import Mapping, Sequence

import numpy as np

from flare_ds.data.dealing import JoinedPool
from flare_ds.data.row_file import RowFile
from flare_ds.exceptions import DataError
from flare_ds.tasks.base import Pool, Task
from flare_ds.tasks.check import checked_rows


def read_joined(
    task: Task, data_dir: str | None, languages: Sequence[str], pool: Pool, counts: dict[str, int]
) -> JoinedPool:
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
    files = {language: _read(task, data_dir, language, pool) for language in languages}
    first = files[languages[0]]
    whole = [row_id for row_id in first.ids if all(task.covers(row_id, language) for language in languages)]
    for language, file in files.items():
        _check_side(task, languages[0], files, language, file)
    filled = [row_id for row_id in whole if all(file.texts[file.places[row_id]] for file in files.values())]
    count(counts, "rows_read", len(first))
    count(counts, "dropped_not_in_a_language", len(first) - len(whole))
    count(counts, "dropped_empty_text", len(whole) - len(filled))
    places = np.array([[file.places[row_id] for file in files.values()] for row_id in filled], np.int64)
    return JoinedPool(pool, files, places.reshape(-1, len(files)))


def count(counts: dict[str, int], name: str, number: int) -> None:
    """Add to one of the counts."""
    counts[name] = counts.get(name, 0) + number


def _read(task: Task, data_dir: str | None, language: str, pool: Pool) -> RowFile:
    name = f"language {language!r} of task {task.name}"
    rows = checked_rows(task.read(data_dir, language, pool), task, name)
    return RowFile(rows, name=name, split_fields=task.split_fields, long_field=task.long_field)


def _check_side(task: Task, first: str, files: Mapping[str, RowFile], language: str, file: RowFile) -> None:
    """Refuse a language whose rows are not those of the first language, or whose labels differ from its labels."""
    expected = dict.fromkeys(row_id for row_id in files[first].ids if task.covers(row_id, language))
    sizes = f"{len(file)} rows in {language!r}, {len(expected)} expected from {first!r}"
    fix = "fetch the data again: all languages must come from the same release"
    # The first in the files' own order, which is where a reader would look.
    wrong = [
        row_id for row_id in expected | dict.fromkeys(file.ids) if row_id not in expected or row_id not in file.places
    ]
    if wrong:
        where = "is missing" if wrong[0] in expected else "is unexpected"
        raise DataError(f"task {task.name}: row {wrong[0]} {where} in language {language!r} ({sizes})", fix=fix)
    for row_id, label in zip(file.ids, file.labels, strict=True):
        right = files[first].labels[files[first].places[row_id]]
        if label != right:
            problem = f"task {task.name}: row {row_id} has label {_word(task, label)} in {language!r}"
            raise DataError(f"{problem} but {_word(task, right)} in {first!r}", fix=fix)


def _word(task: Task, label: int | None) -> str:
    return "none" if label is None else repr(task.word_lists[0][label])
