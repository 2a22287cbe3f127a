"""Rows of several languages side by side, split so that no test text is ever trained on.

    sides: own          the data set says a row in every language; they meet by its id
    sides: translated   train, validation   source rows | their machine translation
                        test                target rows | their machine translation back into the source language
                                            (source rows | translation, where the data set lacks the target language)

Rows lie on disk; a sequence of them reads one at a time.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flare_ds.config import TaskConfig, TranslateConfig
from flare_ds.data.digests import among
from flare_ds.data.parallel_row import Candidates, ParallelData, ParallelRow, ParallelRows, Side
from flare_ds.data.row_table import digests
from flare_ds.data.split import HELD_OUT, JoinedRows, deal, is_cut, pools_of, read_joined
from flare_ds.data.translated import make_jobs, pair_with_translations
from flare_ds.exceptions import ConfigError, DataError
from flare_ds.failures import warn
from flare_ds.tasks.base import SPLITS, Pool, Split, Task
from flare_ds.tasks.load import check_languages
from flare_ds.tasks.sides import read_language
from flare_ds.tasks.table import TableTask
from flare_ds.translation.job import TranslationJob

_MANY = 0.5
"""The share of test rows; of rows that all languages have, a split made here gives 0.85."""

__all__ = ["ParallelData", "ParallelRow", "Side", "load_parallel", "parts_read", "translation_jobs"]


def load_parallel(task: Task, config: TaskConfig, translate: TranslateConfig | None = None) -> ParallelData:
    """Read all languages of a config, pair the sides, split, cap, and drop leaks.

    Dropped and counted first are rows the data set is known to lack in one of the languages, and rows with an empty
    text. The caps then keep the first rows of each split. Of those, a train or validation row is dropped when one of
    its texts is also a text of a test row, in any language read and whether or not the cap keeps that test row; and
    likewise a train row with a text of a validation row. The test split thus has exactly `test_rows` rows if it can.
    Rows that only share their long field (a passage, a premise) with a held-out row are counted, and dropped likewise
    where `drop_shared_passages` says so.

    Args:
        task: what is read.
        config: from where, which languages, how many rows.
        translate: which machine translation is the other side (sides: translated).

    Raises:
        DataError: a language, a file or a row is missing or malformed, the sides are misaligned, or a translation is
            not there yet.
    """
    check_languages(task, config)
    counts: Counter[str] = Counter()
    whole = _deal(task, config, counts)
    kept = _capped(whole, config)
    translations: tuple[Path, ...] = ()
    if config.is_translated:
        translate = translate or TranslateConfig()
        candidates, translations = pair_with_translations(task, config, kept, translate, counts)
    else:
        candidates = {split: _own(rows, config) for split, rows in kept.items()}
    clean = _without_leaks("text", candidates, whole, counts)
    if config.drop_shared_passages:
        clean = _without_leaks("passage", clean, whole, counts)
    _count_shared_passages(clean, counts)
    return ParallelData({split: rows.rows for split, rows in clean.items()}, dict(counts), translations)


def translation_jobs(task: Task, config: TaskConfig) -> list[TranslationJob]:
    """What is to be translated for a config.

    Raises:
        ConfigError: nothing is: with sides=own, or where both languages are one.
        DataError: see `load_parallel`.
    """
    check_languages(task, config)
    if not config.is_translated:
        problem = f"task.sides={config.sides!r} from {config.source_language!r} into {config.target_language!r}"
        fix = "set task.sides=translated and another task.target_language"
        raise ConfigError(f"{problem}: nothing is to be translated", fix=fix)
    return list(make_jobs(task, config, _capped(_deal(task, config, Counter()), config)).values())


def parts_read(task: Task, config: TaskConfig) -> list[tuple[str, Pool]]:
    """The languages that are read for a config, and which part of each."""
    read = _read_together(task, config).items()
    parts = [(one, pool) for languages, of in read for pool in pools_of(of, task.pools) for one in languages]
    return list(dict.fromkeys(parts))


def _capped(splits: Mapping[Split, JoinedRows], config: TaskConfig) -> dict[Split, JoinedRows]:
    caps = {"train": config.train_rows, "validation": config.validation_rows, "test": config.test_rows}
    return {
        split: {language: table.first(caps[split]) for language, table in rows.items()}
        for split, rows in splits.items()
    }


def _deal(task: Task, config: TaskConfig, counts: Counter[str]) -> dict[Split, JoinedRows]:
    """The rows of each split: in all languages; or, where a side is translated, in the language that is not."""
    dealt: dict[Split, JoinedRows] = {}
    for languages, splits in _read_together(task, config).items():
        pools = pools_of(splits, task.pools)
        try:
            rows = deal(task, {pool: read_joined(task, config.data_dir, languages, pool, counts) for pool in pools})
        except DataError as error:
            raise _with_why(error, languages[0], task, config) from error
        dealt |= {split: rows[split] for split in splits}
    _tell_same_ids(task, dealt)
    return {split: dealt[split] for split in SPLITS}


def _tell_same_ids(task: Task, dealt: Mapping[Split, JoinedRows]) -> None:
    """Warn where rows are called as if they said the same in two languages, but each language is split by itself.

    They may only be counted alike, so this is no error.
    """
    if task.parallel or "all" not in task.pools or not isinstance(task, TableTask) or task.id_column is None:
        return
    from pyarrow.compute import is_in  # takes longer to import than most commands have rows to read

    (source, train), (target, test) = (next(iter(dealt[split].items())) for split in ("train", "test"))
    same = is_in(test.ids, value_set=train.ids).to_numpy().sum()
    if source != target and same > len(test) * _MANY:
        warn(
            f"task {task.name}: {same} of {len(test)} test rows in {target!r} have ids of train rows in {source!r}. If "
            "rows with equal ids are translations of one another, the model is tested on what it was trained on: set "
            "parallel: true in the task"
        )


def _with_why(error: DataError, deciding: str, task: Task, config: TaskConfig) -> DataError:
    """What a language is read for that a config does not name."""
    if deciding in config.languages or task.original_language:
        return error
    why = f"{deciding}, the first language of task {task.name}, decides which split a row is in"
    return DataError(f"{error.problem} ({why})", fix=f"{error.fix}; or set the task's original_language to another")


def _read_together(task: Task, config: TaskConfig) -> dict[tuple[str, ...], list[Split]]:
    """The splits that some languages are read for: first the one whose text decides the split, if one does.

    Of a language only the parts are read that those splits come from: a target language may have a test set alone.
    """
    splits: dict[tuple[str, ...], list[Split]] = {}
    for split in SPLITS:
        languages = (*_deciding(task, split), *_asked_for(task, config, split))
        splits.setdefault(tuple(dict.fromkeys(languages)), []).append(split)
    return splits


def split_language(task: Task, config: TaskConfig) -> str | None:
    """The first language of a task, where it decides a split although a config asks for another first."""
    if task.original_language:
        return None
    others = (split for split in SPLITS if _deciding(task, split) not in ((), _asked_for(task, config, split)[:1]))
    return task.languages[0] if any(others) else None


def _asked_for(task: Task, config: TaskConfig, split: Split) -> tuple[str, ...]:
    """The languages whose rows a config asks for."""
    return (read_language(task, config, split),) if config.is_translated else config.languages


def _deciding(task: Task, split: Split) -> tuple[str, ...]:
    """The language whose text decides which rows of a parallel task a split has, whichever languages a config reads.

    Where the split is made here that is some one language, or a row would be trained on in one language and tested in
    another.
    """
    if not task.parallel:
        return ()
    if task.original_language:
        return (task.original_language,)
    return (task.languages[0],) if any(is_cut(pool, task.pools) for pool in pools_of([split], task.pools)) else ()


def _own(rows: JoinedRows, config: TaskConfig) -> Candidates:
    fused = () if config.source_languages == (config.target_language,) else config.source_languages
    sides = ParallelRows(tuple(rows[language] for language in fused), rows[config.target_language])
    return Candidates(sides, tuple(rows.values()))


def _without_leaks(
    name: str, candidates: Mapping[Split, Candidates], whole: Mapping[Split, JoinedRows], counts: Counter[str]
) -> dict[Split, Candidates]:
    """Drop rows with the text or passage of a held-out row, be that one within its cap or not."""
    clean = dict(candidates)
    for held_out, exposed in HELD_OUT.items():
        all_rows, kept_rows = digests(whole[held_out].values(), name), candidates[held_out].digests(name)
        seen = np.concatenate([all_rows.ravel(), kept_rows.ravel()])
        for split in exposed:
            leaks = among(clean[split].digests(name), seen)
            counts[f"dropped_{name}_of_a_{held_out}_row"] += int(leaks.sum())
            clean[split] = clean[split].without(leaks)
    return clean


def _count_shared_passages(rows: Mapping[Split, Candidates], counts: Counter[str]) -> None:
    """Count the held-out rows whose long field is also that of a row they are held out from."""
    for held_out, exposed in HELD_OUT.items():
        for split in exposed:
            shared = among(rows[held_out].digests("passage"), rows[split].digests("passage"))
            counts[f"{held_out}_rows_with_a_passage_of_a_{split}_row"] += int(shared.sum())
