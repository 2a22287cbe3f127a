"""Rows whose other side is a machine translation: what is to be translated, and how the two sides are paired."""

from collections.abc import Mapping, Sequence
from functools import partial

from flare_ds.config import TaskConfig, TranslateConfig
from flare_ds.data.dealing import DealtRows, OneLanguage
from flare_ds.data.joining import count
from flare_ds.data.parallel_row import Candidates, ParallelRow, Side
from flare_ds.data.row_file import text_checksum
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
        split: _pair(job, opened[split], counts, back=read_language(task, config, split) == config.target_language)
        for split, job in jobs.items()
    }


def _pair(job: TranslationJob, translations: Sequence[Row | None], counts: dict[str, int], *, back: bool) -> Candidates:
    """Pair the rows of a split with their translations.

    A row without a translated *target* is dropped: there is nothing to train on or to score. A row that is trained or
    validated on is also dropped when its answer was not found in the translated text; a test row never is: there the
    text of the answer is enough.
    """
    texts: dict[int, list[bytes]] = {}
    for number, (row, other) in enumerate(zip(job.rows, translations, strict=True)):
        problem = _problem(job, row, other, back=back)
        if problem:
            count(counts, problem, 1)
        if not problem.startswith("dropped"):
            texts[number] = [text_checksum(side.fields.values()) for side in (row, other) if side is not None]
    return Candidates(partial(_build, job.rows, translations, back), texts)


def _problem(job: TranslationJob, row: Row, other: Row | None, *, back: bool) -> str:
    """What is wrong with a translation, as the name of a count."""
    if other is None:
        return "test_rows_without_source" if back else "dropped_translation_failed"
    if row.answers and all(answer.start is None for answer in other.answers):
        where = "answer_not_found_in_translation"
        return f"test_rows_{where}" if job.split == "test" else f"dropped_{where}"
    return ""


def _build(rows: Sequence[Row], translations: Sequence[Row | None], back: bool, number: int) -> ParallelRow:
    row, other = rows[number], translations[number]
    if back:
        return ParallelRow(row.id, row.label, (None if other is None else Side.of(other),), Side.of(row))
    assert other is not None, "a row without a target is no candidate"
    # The first answer is trained on: one that was found in the translated text.
    answers = tuple(sorted(other.answers, key=lambda answer: answer.start is None))
    return ParallelRow(row.id, row.label, (Side.of(row),), Side(other.fields, answers))
