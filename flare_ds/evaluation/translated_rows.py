"""Texts that a user has in the target language alone, put into the source languages by the engine that a run names.

What `flare-ds translate` does for a whole split, for texts at hand: nothing is kept on disk.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from flare_ds.config import Config
from flare_ds.data.parallel import ParallelRow, Side
from flare_ds.exceptions import ConfigError
from flare_ds.failures import warn
from flare_ds.progress import bar
from flare_ds.runtime.process_group import rank
from flare_ds.tasks.base import Row, Task
from flare_ds.tasks.languages import nllb_tag
from flare_ds.translation.batches import in_order
from flare_ds.translation.engines import ENGINES, Direction
from flare_ds.translation.rows import UntranslatedError, segments_of, translate_row
from flare_ds.translation.run import substitutes
from flare_ds.translation.worker import Worker

_FIX = "see what it says above; check translate.engine and translate.model, or give the texts with their sources"


class RowTranslator:
    """Translates the targets of rows; an engine for each source language is loaded when it is first needed, and kept.

    The run's `translate` settings name the engine, which uses GPU number `gpu`, where there is one and it can.

    Raises:
        ConfigError: the method reads no source, the engine does not know the languages, or there is no such model.
        DataError: a language has no NLLB tag.
        HostError: this machine lacks what the engine needs.
    """

    def __init__(self, config: Config, task: Task, *, gpu: int = 0) -> None:
        if not config.sources_read:
            problem = f"method={config.method} reads no source, so there is nothing to translate"
            raise ConfigError(problem, fix="ask without a translation")
        own = nllb_tag(task, config.task.target_language)
        self._directions = [Direction(own, nllb_tag(task, code)) for code in config.sources_read]
        for direction in self._directions:
            ENGINES.get(config.translate.engine).identity(config.translate, direction)  # what can refuse, does so now
        for line in substitutes(config.task) if rank() == 0 else ():
            warn(line)
        self._long_field, self._size = task.long_field, config.translate.batch_size
        self._workers = [Worker(config.translate, gpu, {}, fix=_FIX) for _ in self._directions]

    def fill(self, rows: Sequence[ParallelRow]) -> list[ParallelRow]:
        """Give rows the sources that they lack.

        Returns:
            The rows, in their order. None stays in the place of a source where the engine has no translation.

        Raises:
            HostError: the engine does not start, or it translates nothing.
        """
        filled = list(rows)
        for place in range(len(self._directions)):
            lacking = [number for number, row in enumerate(filled) if row.sources[place] is None]
            sides = self._translated([filled[number].target for number in lacking], place)
            for number, side in zip(lacking, sides, strict=True):
                sources = list(filled[number].sources)
                sources[place] = side
                filled[number] = replace(filled[number], sources=tuple(sources))
        return filled

    def _translated(self, sides: Sequence[Side], place: int) -> Iterator[Side | None]:
        rows = [Row("", side.fields) for side in sides]
        ordered = in_order([segment for row in rows for segment in segments_of(row, self._long_field, held_out=True)])
        said = dict[str, str | None]()
        with bar(total=len(ordered), desc="translate", unit="sentence") as shown:
            for start in range(0, len(ordered), self._size):
                segments = ordered[start : start + self._size]
                found = self._workers[place].translate(self._directions[place], segments)
                said |= {segment: one and one.text for segment, one in zip(segments, found, strict=True)}
                shown.update(len(segments))
        for row, side in zip(rows, sides, strict=True):
            yield _put_together(row, side, self._long_field, said)


def _put_together(row: Row, side: Side, long_field: str, said: Mapping[str, str | None]) -> Side | None:
    try:
        return replace(side, fields=translate_row(row, long_field, said, held_out=True).fields)
    except UntranslatedError:
        return None
