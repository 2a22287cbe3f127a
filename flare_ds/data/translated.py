"""Rows whose other side is a machine translation: what is to be translated, and how the two sides are paired."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from flare_ds.config import TaskConfig, TranslateConfig
from flare_ds.data.dealing import DealtRows, OneLanguage
from flare_ds.data.joining import count
from flare_ds.data.parallel_row import Candidates, ParallelRow, Side
from flare_ds.data.row_file import row_checksum, text_checksum
from flare_ds.tasks.base import Row, Split, Task
from flare_ds.tasks.languages import nllb_tag
from flare_ds.translation.job import TranslationJob
from flare_ds.translation.store import open_translation


def read_language(task: Task, config: TaskConfig, split: Split) -> str:
    """The language the rows of a split are read in; the other side is its translation.

    The target's own test rows are what it is tested on, where the data set has any.
    """
    own_test = split == "test" and config.target_language in task.languages
    return config.target_language if own_test else config.source_language


def make_jobs(task: Task, config: TaskConfig, rows: Mapping[Split, DealtRows]) -> dict[Split, TranslationJob]:
    """One translation for each split, out of the language its rows are read in.

    Raises:
        DataError: a language has no NLLB tag.
    """
    jobs: dict[Split, TranslationJob] = {}
    for split, dealt in rows.items():
        language = read_language(task, config, split)
        (other,) = {config.source_language, config.target_language} - {language}
        tags = nllb_tag(task, language), nllb_tag(task, other)
        jobs[split] = TranslationJob(split, *tags, OneLanguage(dealt, language), task.long_field)
    return jobs


def pair_with_translations(
    task: Task,
    config: TaskConfig,
    rows: Mapping[Split, DealtRows],
    translate: TranslateConfig,
    counts: dict[str, int],
) -> dict[Split, Candidates]:
    """Put the translation of each row beside it; what cannot be used is dropped and counted.

    Raises:
        DataError: a translation is not there yet.
    """
    jobs = make_jobs(task, config, rows)
    opened = {split: open_translation(job, translate) for split, job in jobs.items()}  # all, before the long work
    return {
        split: _pair(
            job,
            opened[split],
            translate.drop,
            counts,
            back=read_language(task, config, split) == config.target_language,
        )
        for split, job in jobs.items()
    }


def _pair(
    job: TranslationJob,
    translations: Sequence[Row | None],
    drop: Sequence[str],
    counts: dict[str, int],
    *,
    back: bool,
) -> Candidates:
    """Pair the rows of a split with their translations.

    A row without a translated *target* is dropped: there is nothing to train on or to score. A row that is trained or
    validated on is also dropped when its answer was not found in the translated text; a test row never is: there the
    text of the answer is enough. What `translate.drop` names is dropped likewise; otherwise it is counted.
    """
    texts: dict[int, list[bytes]] = {}
    passages: dict[int, list[bytes]] = {}
    for number, (row, other) in enumerate(zip(job.rows, translations, strict=True)):
        problems = list(_problems(job, row, other, drop, back=back))
        for problem in problems:
            count(counts, problem, 1)
        if not any(problem.startswith("dropped") for problem in problems):
            sides = [side.fields for side in (row, other) if side is not None]
            texts[number] = [row_checksum(fields.values()) for fields in sides]
            passages[number] = [text_checksum([fields[job.long_field]]) for fields in sides]
    return Candidates(partial(_build, job.rows, translations, back), texts, passages)


def _problems(job: TranslationJob, row: Row, other: Row | None, drop: Sequence[str], *, back: bool) -> Iterator[str]:
    """What is wrong with a translation, as names of counts; what drops the row stands alone."""
    if other is None:
        yield "test_rows_without_source" if back else "dropped_translation_failed"
        return
    problems = [f"translation_{mark}" for mark in other.marks]
    fatal = {f"translation_{mark}" for mark in drop}
    if row.answers and all(answer.start is None for answer in other.answers):
        problems.append("answer_not_found_in_translation")
        fatal.add(problems[-1])
    found = [problem for problem in problems if problem in fatal]
    if found and job.split != "test":
        yield f"dropped_{found[0]}"
    else:
        yield from (f"{job.split}_rows_{problem}" for problem in problems)


def _build(rows: Sequence[Row], translations: Sequence[Row | None], back: bool, number: int) -> ParallelRow:
    row, other = rows[number], translations[number]
    if back:
        return ParallelRow(row.id, row.label, (None if other is None else Side.of(other),), Side.of(row))
    assert other is not None, "a row without a target is no candidate"
    # The first answer is trained on: one that was found in the translated text.
    answers = tuple(sorted(other.answers, key=lambda answer: answer.start is None))
    return ParallelRow(row.id, row.label, (Side.of(row),), Side(other.fields, answers))
