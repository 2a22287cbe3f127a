"""Tasks of BIG-bench's source distribution: JSON objects with a list of `examples`, as `flare-ds fetch data` lays them.

{"examples": [{"input": "...", "target": "..."},                              an answer in free text
              {"input": "...", "target_scores": {"True": 1, "False": 0}}]}    one of several words
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flare_ds.exceptions import DataError
from flare_ds.files import readable_again
from flare_ds.tasks.records import Record

_FETCH_ANEW = "delete the directory of the data (itself, not a link to it) and fetch them again"
"""What helps against damage that the sizes of the files do not show."""


class FetchedRecord(Record):
    """One object of a file that `flare-ds fetch` has laid there: the user has no other row to lose."""

    again = f", or {_FETCH_ANEW}"


def not_on_hub(task: str) -> DataError:
    """The error that says that a task's data must be fetched, and where they are then."""
    return DataError(f"task {task} is not on the hub, and task.data_dir is not set", fix=_fetch(task))


def path_in(data_dir: str | None, file: str, task: str) -> Path:
    """Where a fetched file of a task lies.

    Raises:
        DataError: `data_dir` is None, but these tasks are not on the hub.
    """
    if data_dir is None:
        raise not_on_hub(task)
    return Path(data_dir) / file


def read_list(path: Path, key: str, task: str) -> list[Any]:
    """The list under a key of a JSON file.

    Raises:
        DataError: there is no such file, or it holds no such list or an empty one.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[key]
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}", fix=readable_again(error, damaged=_fetch(task))
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is not a file of {task}: {error!r:.100}", fix=fetch_anew(path, task)) from error
    if not isinstance(found, list) or not found:
        raise DataError(f"{path} holds no list of {key}", fix=fetch_anew(path, task))
    return found


def read_examples(path: Path, task: str) -> Iterator[Record]:
    """The examples of a file, as records that know their row.

    Raises:
        DataError: the file is missing or something else, or (while iterating) an example is not an object.
    """
    return (as_record(example, f"row {row} of {path}") for row, example in enumerate(read_list(path, "examples", task)))


def as_record(value: Any, where: str) -> Record:
    """A JSON object as a record.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where} is not an object: {value!r:.100}", fix=f"correct or remove it, or {_FETCH_ANEW}")
    return FetchedRecord(where, value)


def read_choice(record: Record, words: Sequence[str]) -> int:
    """Which of some words has the score 1, all others having 0.

    Raises:
        DataError: none or several have, or the scores are of other words.
    """
    scores = record["target_scores"]
    chosen = [word for word in words if scores.get(word) == 1] if isinstance(scores, dict) else []
    if len(chosen) != 1 or set(scores) != set(words):
        raise record.refuse("target_scores", f"exactly one of {', '.join(words)}")
    return words.index(chosen[0])


def _fetch(task: str) -> str:
    return f"run `flare-ds fetch data {task} --link data/{task}`, and set task.data_dir=data/{task}"


def fetch_anew(path: Path, task: str) -> str:
    """What to do about a fetched file that holds something else than it should, in whatever size."""
    return f"delete {shlex.quote(str(path.parent.resolve()))} and run `flare-ds fetch data {task}` again"
