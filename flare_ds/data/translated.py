"""Rows whose other side is a machine translation: what is to be translated, and how the two sides are paired."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from flare_ds.config import TaskConfig, TranslateConfig
from flare_ds.data.parallel_row import Candidates, ParallelRows
from flare_ds.data.row_table import RowTable
from flare_ds.data.split import JoinedRows
from flare_ds.tasks.base import Row, Split, Task
from flare_ds.tasks.languages import nllb_tag
from flare_ds.tasks.sides import read_language
from flare_ds.translation.engines import Direction
from flare_ds.translation.job import TranslationJob
from flare_ds.translation.store import find_translation, read_translation


def make_jobs(task: Task, config: TaskConfig, rows: Mapping[Split, JoinedRows]) -> dict[Split, TranslationJob]:
    """One translation for each split, out of the language its rows are read in.

    Raises:
        DataError: a language has no NLLB tag.
    """
    jobs: dict[Split, TranslationJob] = {}
    for split, joined in rows.items():
        language = read_language(task, config, split)
        direction = Direction(nllb_tag(task, language), nllb_tag(task, _other(config, language)))
        jobs[split] = TranslationJob(split, direction, joined[language], task.long_field)
    return jobs


def _other(config: TaskConfig, language: str) -> str:
    return config.source_language if language == config.target_language else config.target_language


def pair_with_translations(
    task: Task,
    config: TaskConfig,
    rows: Mapping[Split, JoinedRows],
    translate: TranslateConfig,
    counts: Counter[str],
) -> tuple[dict[Split, Candidates], tuple[Path, ...]]:
    """Put the translation of each row beside it; what cannot be used is dropped and counted.

    Returns:
        The rows of each split, and the directories of the translations.

    Raises:
        DataError: a translation is not there yet, or it is damaged.
    """
    jobs = make_jobs(task, config, rows)
    found = {split: find_translation(job, translate) for split, job in jobs.items()}  # all, before the long work
    paired: dict[Split, Candidates] = {}
    for split, job in jobs.items():
        language = read_language(task, config, split)
        own, said = rows[split][language], read_translation(found[split], job.rows)
        other, back = _other(config, language), language == config.target_language
        paired[split] = _pair(task, other, job, own, said, translate.drop, counts, back=back)
    return paired, tuple(found.values())


def _pair(
    task: Task,
    language: str,
    job: TranslationJob,
    own: RowTable,
    translations: Iterable[Row | None],
    drop: Sequence[str],
    counts: Counter[str],
    *,
    back: bool,
) -> Candidates:
    """Pair the rows of a split with their translations.

    A row without a translated *target* is dropped: there is nothing to train on or to score. A row that is trained or
    validated on is also dropped when its answer was not found in the translated text; a test row never is: there the
    text of the answer is enough. What `translate.drop` names is dropped likewise; otherwise it is counted.
    """
    kept, there = array("q"), array("b")

    def used() -> Iterator[Row]:
        """The translations of the rows that stay; which these are is noted."""
        for number, (row, other) in enumerate(zip(job.rows, translations, strict=True)):
            problems = list(_problems(job, row, other, drop, back=back))
            counts.update(problems)
            if any(problem.startswith("dropped") for problem in problems):
                continue
            kept.append(number)
            there.append(other is not None)
            if other is not None:
                yield other if back else _found_first(other)

    translated, is_there = RowTable.write(used(), task, language), np.array(there, bool)
    other = translated.take(np.where(is_there, is_there.cumsum() - 1, -1))
    own = own.take(np.array(kept, np.int64))
    rows = ParallelRows((other,), own) if back else ParallelRows((own,), other, translated=True)
    return Candidates(rows, (own, other))


def _problems(job: TranslationJob, row: Row, other: Row | None, drop: Sequence[str], *, back: bool) -> Iterator[str]:
    """What is wrong with a translation, as names of counts; what drops the row stands alone."""
    if other is None:
        yield "test_rows_without_source" if back else "dropped_translation_failed"
        return
    problems = [f"translation_{mark}" for mark in other.marks]
    fatal = {f"translation_{mark}" for mark in drop}
    stood = any(answer.start is not None for answer in row.answers)
    if stood and all(answer.start is None for answer in other.answers):
        problems.append("answer_not_found_in_translation")
        fatal.add(problems[-1])
    found = [problem for problem in problems if problem in fatal]
    if found and job.split != "test":
        yield f"dropped_{found[0]}"
    else:
        yield from (f"{job.split}_rows_{problem}" for problem in problems)


def _found_first(row: Row) -> Row:
    """The first answer is trained on: one that was found in the translated text."""
    return replace(row, answers=tuple(sorted(row.answers, key=lambda answer: answer.start is None)))
