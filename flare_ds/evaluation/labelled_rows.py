"""A file of rows whose answers are known: those of `predict --file`, and a column that says what is right.

    label words    {"target": "Czekałem", "source": "I waited", "label": "negative"}
    free answers   {"target": {"question": ..., "context": ...}, "answers": ["Warszawa", "w Warszawie"]}

A label is what it may be in the task's own tables of the target language. Answers are texts, or SQuAD's {text,
answer_start}; in a CSV, one text or the JSON of either. They are in the language of the text that is answered: of
translate_test the source's, in a row that has one.
"""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from flare_ds.config import Config
from flare_ds.data.parallel import ParallelRow, Side
from flare_ds.evaluation.given_rows import COLUMNS, row_of
from flare_ds.exceptions import DataError
from flare_ds.json_text import parse_json
from flare_ds.tasks.base import Answer, Task
from flare_ds.tasks.cells import read_answers
from flare_ds.tasks.records import Record, open_file
from flare_ds.tasks.table import label_cells


def read_labelled(config: Config, task: Task, path: Path) -> list[ParallelRow]:
    """The rows of a file, see `read_rows`, with a side for each source language of the config, read or not.

    Raises:
        DataError: the file cannot be read or has no rows, an id stands twice, or a cell is not what it should be.
    """
    column = "answers" if task.free_answers else "label"
    records = open_file(path, (*COLUMNS, column))
    labels = label_cells(task, config.task.target_language, records.classes.get(column))
    streams = len(config.task.source_languages) if config.has_source else 0
    rows: dict[str, ParallelRow] = {}
    for number, record in enumerate(records):
        row = row_of(config, task, record, str(number))
        if row.id in rows:
            raise DataError(f"{record.where} has the id {row.id!r} of an earlier row", fix="give each row its own")
        row = replace(row, sources=(*row.sources, *[None] * (streams - len(row.sources))))
        if not task.free_answers:
            rows[row.id] = replace(row, label=labels.read(record, column))
        elif config.answers_source and row.sources and row.sources[0] is not None:
            answered = _answered(task, row.sources[0], record, column)
            rows[row.id] = replace(row, sources=(answered, *row.sources[1:]))
        else:
            rows[row.id] = replace(row, target=_answered(task, row.target, record, column))
    if not rows:
        raise DataError(f"{path} has no rows", fix="give it at least one")
    return list(rows.values())


def _answered(task: Task, side: Side, record: Record, column: str) -> Side:
    """The side that is answered, with what is right of it."""
    return Side(side.fields, _answers(record, column, side.fields[task.long_field]))


def _answers(record: Record, column: str, context: str) -> tuple[Answer, ...]:
    given = record[column]
    if isinstance(given, str):
        parsed: Any = None
        with suppress(ValueError):  # it is a text
            parsed = parse_json(given)
        given = parsed if isinstance(parsed, list | dict) else [given]
    if isinstance(given, list) and all(isinstance(text, str) for text in given):
        given = {"text": given, "answer_start": [0] * len(given)}
    return read_answers(replace(record, values={**record.values, column: given}), column, context)
