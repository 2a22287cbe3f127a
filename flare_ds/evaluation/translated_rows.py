"""Texts that a user has in the target language alone, put into the source languages by the engine that a run names.

What `flare-ds translate` does for a whole split, for texts at hand: nothing is kept on disk.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from flare_ds.config import Config
from flare_ds.data.parallel import ParallelRow, Side
from flare_ds.exceptions import ConfigError
from flare_ds.tasks.base import Row, Task
from flare_ds.tasks.languages import nllb_tag
from flare_ds.translation.batches import in_order
from flare_ds.translation.engines import Direction
from flare_ds.translation.rows import UntranslatedError, segments_of, translate_row
from flare_ds.translation.worker import Worker


class RowTranslator:
    """Translates the targets of rows; the engine is loaded when it is first needed, and kept.

    Args:
        config: of the run; its `translate` settings name the engine.
        task: its task.

    Raises:
        ConfigError: the method reads no source.
        DataError: a language has no NLLB tag.
    """

    def __init__(self, config: Config, task: Task) -> None:
        if not config.sources_read:
            problem = f"method={config.method} reads no source, so there is nothing to translate"
            raise ConfigError(problem, fix="ask without a translation")
        own = nllb_tag(task, config.task.target_language)
        self._directions = [Direction(own, nllb_tag(task, code)) for code in config.sources_read]
        self._long_field, self._size = task.long_field, config.translate.batch_size
        self._worker = Worker(config.translate, 0, dict.fromkeys(self._directions, ()))

    def fill(self, rows: Sequence[ParallelRow]) -> list[ParallelRow]:
        """Give rows the sources that they lack.

        Returns:
            The rows, in their order. None stays in the place of a source where the engine has no translation.

        Raises:
            ConfigError: the engine does not know the languages, or there is no such model.
            HostError: this machine lacks what the engine needs, or it translates nothing.
        """
        filled = list(rows)
        for place, direction in enumerate(self._directions):
            lacking = [number for number, row in enumerate(filled) if row.sources[place] is None]
            sides = self._translated([filled[number].target for number in lacking], direction)
            for number, side in zip(lacking, sides, strict=True):
                sources = list(filled[number].sources)
                sources[place] = side
                filled[number] = replace(filled[number], sources=tuple(sources))
        return filled

    def _translated(self, sides: Sequence[Side], direction: Direction) -> Iterator[Side | None]:
        rows = [Row("", side.fields) for side in sides]
        ordered = in_order([segment for row in rows for segment in segments_of(row, self._long_field)])
        said = dict[str, str | None]()
        for start in range(0, len(ordered), self._size):
            segments = ordered[start : start + self._size]
            for segment, found in zip(segments, self._worker.translate(direction, segments), strict=True):
                said[segment] = found and found.text
        for row, side in zip(rows, sides, strict=True):
            yield _put_together(row, side, self._long_field, said)


def _put_together(row: Row, side: Side, long_field: str, said: Mapping[str, str | None]) -> Side | None:
    try:
        return replace(side, fields=translate_row(row, long_field, said).fields)
    except UntranslatedError:
        return None
