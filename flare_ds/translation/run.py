"""Translating jobs: each split's sentences in batches, some processes at a time, and what came of them."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from flare_ds.config import TaskConfig, TranslateConfig
from flare_ds.config.data import Mark
from flare_ds.exceptions import HostError
from flare_ds.files import disk_errors
from flare_ds.locks import one_at_a_time
from flare_ds.progress import bar
from flare_ds.published import PARTIAL, publishing
from flare_ds.tasks.base import Row
from flare_ds.tasks.languages import SUBSTITUTES
from flare_ds.tasks.load import task_of
from flare_ds.translation.batches import Batch, in_order, make_batches, probes_of, said_so_far
from flare_ds.translation.engines import Direction, Said
from flare_ds.translation.job import TranslationJob
from flare_ds.translation.loops import loops
from flare_ds.translation.quality import Inspector
from flare_ds.translation.rows import UntranslatedError, segments_of, translate_row
from flare_ds.translation.store import (
    ELSEWHERE,
    ROWS,
    TRANSLATION,
    Manifest,
    key_fields,
    place_of,
    read_manifest,
    write_manifest,
    write_rows,
)
from flare_ds.translation.workers import run_batches


def translate_jobs(
    jobs: Sequence[TranslationJob], translate: TranslateConfig, *, workers: int | None = 1
) -> list[Path]:
    """Translate some jobs; every language and model is checked before the first of them starts.

    Another process that translates one of them is waited for: what it made, or left, is taken.

    Raises:
        ConfigError: the engine cannot be used so.
        HostError: this machine lacks what the engine needs, or disk; or the engine translated nothing.
    """
    tasks = [_Task.of(job, translate) for job in jobs]
    with _alone({task.directory for task in tasks if not task.directory.exists()}):
        unfinished = {task.directory: task for task in tasks if not task.directory.exists()}
        _translate(list(unfinished.values()), translate, workers)
        for task in tasks:
            task.finish()
    return [task.directory for task in tasks]


@contextmanager
def _alone(directories: Set[Path]) -> Iterator[None]:
    """Let no other process make these meanwhile; each waits for them in one order, so no two wait for each other."""
    with ExitStack() as held:
        for directory in sorted(directories):
            told = f"translate: another process is translating {directory}; waiting"
            with disk_errors(directory, elsewhere=ELSEWHERE):
                held.enter_context(one_at_a_time(directory, partial(print, told, file=sys.stderr)))
        yield


def _translate(tasks: "Sequence[_Task]", translate: TranslateConfig, workers: int | None) -> None:
    """Translate those of their segments that are not translated yet."""
    probes, batches = dict[Direction, list[str]](), list[Batch]()
    for task in tasks:
        direction, said = task.job.direction, said_so_far(task.said)
        probes[direction] = [*probes.get(direction, ()), *probes_of(task.segments)]
        batches += make_batches(task.segments, said, translate.batch_size, direction, task.said)
    every, todo = sum(len(task.segments) for task in tasks), sum(len(batch.segments) for batch in batches)
    with bar(total=every, initial=every - todo, desc="translate", unit="sentence") as shown:
        for batch, _ in zip(batches, run_batches(batches, probes, translate, workers), strict=True):
            shown.update(len(batch.segments))


def describe(config: TaskConfig, directories: Sequence[Path]) -> list[str]:
    """The quality reports of translations as lines to print, and which languages others stand in for."""
    lines = substitutes(config)
    for directory in directories:
        lines += [str(directory), *read_manifest(directory).report.lines()]
    return lines


def substitutes(config: TaskConfig) -> list[str]:
    """Which languages others stand in for, as lines to print."""
    own = task_of(config).nllb_tags
    found = [code for code in config.languages if code in SUBSTITUTES and code not in own]
    return [f"{code} is in no NLLB model: {SUBSTITUTES[code]} stands in for it" for code in found]


@dataclass(frozen=True)
class _Task:
    """One job on its way: its place when finished, and the segments of which it is made."""

    job: TranslationJob
    fields: dict[str, Any]
    directory: Path

    @classmethod
    def of(cls, job: TranslationJob, translate: TranslateConfig) -> "_Task":
        fields = key_fields(job, translate)
        return cls(job, fields, place_of(fields, translate))

    @property
    def said(self) -> Path:
        """Where the files of its finished batches lie."""
        return _partial(self.directory) / "said"

    @cached_property
    def segments(self) -> list[str]:
        """All rows cut into sentences, which takes long where there are many: not asked for once it is finished."""
        return in_order([segment for row in self.job.rows for segment in self._segments_of(row)])

    def finish(self) -> None:
        """Make the finished translation of what was said, unless it is there; then drop that.

        Raises:
            HostError: the engine translated nothing, or the disk is full or not writable.
        """
        if not self.directory.exists():
            with publishing(self.directory, TRANSLATION.check, elsewhere=ELSEWHERE) as result:
                self._write(result)
        shutil.rmtree(_partial(self.directory), ignore_errors=True)

    def _write(self, directory: Path) -> None:
        said = said_so_far(self.said)
        inspector = Inspector(self.job.direction.to_language)
        size, checksum = write_rows(directory / ROWS, self._rows(said, inspector))
        report = inspector.report()
        if report.rows and report.failed == report.rows:
            shutil.rmtree(_partial(self.directory))
            problem = f"translate.engine={self.fields['engine']!r} translated no row of the {self.job.split} split"
            raise HostError(problem, fix="see its messages above; the same command tries again")
        write_manifest(directory, Manifest(fields=self.fields, rows_bytes=size, rows_sha256=checksum, report=report))

    def _rows(self, said: Mapping[str, Said | None], inspector: Inspector) -> Iterator[Row | None]:
        translations = {segment: translation and translation.text for segment, translation in said.items()}
        flawed: dict[Mark, Set[str]] = {
            "cut_off": {segment for segment, translation in said.items() if translation and translation.cut_off},
            "unknown": {segment for segment, translation in said.items() if translation and translation.unknown},
        }
        for row in bar(self.job.rows, desc=f"{self.job.split} rows", unit="row"):
            try:
                translated = translate_row(row, self.job.long_field, translations, held_out=self.job.held_out)
            except UntranslatedError as error:
                inspector.add_failed(empty=error.empty)
                yield None
            else:
                marked = replace(translated, marks=tuple(self._marks(row, translated, flawed)))
                inspector.add(row, marked)
                yield marked

    def _segments_of(self, row: Row) -> Iterator[str]:
        return segments_of(row, self.job.long_field, held_out=self.job.held_out)

    def _marks(self, row: Row, translated: Row, flawed: Mapping[Mark, Set[str]]) -> Iterator[Mark]:
        own = set(self._segments_of(row)) if any(flawed.values()) else set[str]()
        yield from (mark for mark, segments in flawed.items() if not segments.isdisjoint(own))
        if any(loops(text, of=row.fields[name]) for name, text in translated.fields.items()):
            yield "loop"


def _partial(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}{PARTIAL}")
