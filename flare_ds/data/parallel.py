"""Rows of several languages side by side, split so that no test text is ever trained on.

Where a data set has no official split it is made here, from the text in the language the data was written in: the
sha256 of the normalised text says test (10 %), validation (5 %) or train. So every language pair and both stages
share one split, whichever languages they read, and two rows with one text never fall into different splits.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flare_ds.config import TaskConfig
from flare_ds.exceptions import DataError
from flare_ds.tasks.base import Row, Task

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_HELD_OUT: dict[Split, tuple[Split, ...]] = {"test": ("train", "validation"), "validation": ("train",)}
"""Splits whose texts must not be seen, and the splits they must not be seen in."""


@dataclass(frozen=True)
class ParallelRow:
    """One example in every language.

    Attributes:
        id: of the row, in every language.
        label: index into the task's label words.
        sources: its fields in each source language, in the order of the config; none when the only source language is
            the target language.
        target: its fields in the target language.
    """

    id: str
    label: int
    sources: tuple[Mapping[str, str], ...]
    target: Mapping[str, str]


@dataclass(frozen=True)
class ParallelData:
    """All rows of the languages of a config.

    Attributes:
        splits: the rows of each split, in the order of their hash.
        counts: `rows_read` in the original language, and how many were dropped for each reason (`dropped_...`).
    """

    splits: dict[Split, list[ParallelRow]]
    counts: dict[str, int]


_Sides = Mapping[str, Row]
"""One row in every language that was read."""


def load_parallel(task: Task, config: TaskConfig) -> ParallelData:
    """Read source, target and original languages, align them by row id, split, cap, and drop leaks.

    Dropped and counted first are rows the data set is known to lack in one of the languages, and rows with an empty
    text. The caps then keep the first rows of each split. Of those, a train or validation row is dropped when one of
    its texts is also a text of a test row, in any language read and whether or not the cap keeps that test row; and
    likewise a train row with a text of a validation row. The test split thus has exactly `test_rows` rows if it can.

    Raises:
        DataError: a language, a file or a row is missing or malformed, or the sides are misaligned.
    """
    directory = Path(config.data_dir)
    sources = config.source_languages
    languages = dict.fromkeys((task.original_language, *sources, config.target_language))
    rows = {language: _by_id(task.read(directory, language), language) for language in languages}
    counts = {"rows_read": len(rows[task.original_language])}
    splits = _split(_align(task, rows, counts), task.original_language)
    caps = {"train": config.train_rows, "validation": config.validation_rows, "test": config.test_rows}
    kept = {name: splits[name][: caps[name]] for name in SPLITS}
    for held_out, exposed in _HELD_OUT.items():
        texts = {text for sides in splits[held_out] for text in _texts(sides)}
        for name in exposed:
            clean = [sides for sides in kept[name] if texts.isdisjoint(_texts(sides))]
            _count(counts, f"dropped_text_of_a_{held_out}_row", len(kept[name]) - len(clean))
            kept[name] = clean
    fused = () if sources == (config.target_language,) else sources
    parallel = {name: [_parallel_row(sides, fused, config.target_language) for sides in kept[name]] for name in SPLITS}
    return ParallelData(parallel, counts)


def normalise(text: str) -> str:
    """The form in which two texts count as the same: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _by_id(rows: Iterable[Row], language: str) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in rows:
        if row.id in found:
            raise DataError(f"row {row.id} occurs twice in language {language!r}", fix="give every row its own id")
        found[row.id] = row
    return found


def _align(task: Task, rows: Mapping[str, Mapping[str, Row]], counts: dict[str, int]) -> list[_Sides]:
    """Join the languages by row id; count and leave out documented gaps and rows with an empty text."""
    original = rows[task.original_language]
    whole = [row_id for row_id in original if all(task.covers(row_id, language) for language in rows)]
    _count(counts, "dropped_not_in_a_language", len(original) - len(whole))
    for language, side in rows.items():
        _check_side(task, original, side, language)
    aligned: list[_Sides] = [{language: side[row_id] for language, side in rows.items()} for row_id in whole]
    filled = [sides for sides in aligned if all(_texts(sides))]
    _count(counts, "dropped_empty_text", len(aligned) - len(filled))
    return filled


def _check_side(task: Task, original: Mapping[str, Row], side: Mapping[str, Row], language: str) -> None:
    """Refuse a language whose rows are not those of the original language, or whose labels differ from its labels."""
    expected = dict.fromkeys(row_id for row_id in original if task.covers(row_id, language))
    sizes = f"{len(side)} rows in {language!r}, {len(expected)} expected from {task.original_language!r}"
    fix = "fetch the data again: all languages must come from the same release"
    # The first in the files' own order, which is where a reader would look.
    if wrong := [row_id for row_id in (expected | dict.fromkeys(side)) if row_id not in expected or row_id not in side]:
        where = "is missing" if wrong[0] in expected else "is unexpected"
        raise DataError(f"task {task.name}: row {wrong[0]} {where} in language {language!r} ({sizes})", fix=fix)
    for row_id, row in side.items():
        label = original[row_id].label
        if row.label != label:
            problem = f"task {task.name}: row {row_id} has label {task.labels[row.label]!r} in {language!r}"
            raise DataError(f"{problem} but {task.labels[label]!r} in {task.original_language!r}", fix=fix)


def _split(candidates: Iterable[_Sides], original_language: str) -> dict[Split, list[_Sides]]:
    """Deal every row to a split by the hash of its original text, and order each split by that hash."""
    splits: dict[Split, list[_Sides]] = {name: [] for name in SPLITS}
    keyed = [(_digest(sides[original_language]), sides) for sides in candidates]
    for digest, sides in sorted(keyed, key=lambda item: (item[0], item[1][original_language].id)):
        percent = int.from_bytes(digest[:8], "big") * 100 >> 64
        splits["test" if percent < 10 else "validation" if percent < 15 else "train"].append(sides)
    return splits


def _digest(row: Row) -> bytes:
    return hashlib.sha256(_text(row).encode()).digest()


def _texts(sides: _Sides) -> list[str]:
    return [_text(row) for row in sides.values()]


def _text(row: Row) -> str:
    """All fields of a row as one normalised text."""
    return normalise("\n".join(row.fields.values()))


def _parallel_row(sides: _Sides, source_languages: Iterable[str], target_language: str) -> ParallelRow:
    target = sides[target_language]
    sources = tuple(sides[language].fields for language in source_languages)
    return ParallelRow(target.id, target.label, sources, target.fields)


def _count(counts: dict[str, int], name: str, number: int) -> None:
    counts[name] = counts.get(name, 0) + number
