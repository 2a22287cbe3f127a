"""What runs in a forward: the one answer behind what a step costs, what it keeps in memory, and how much fits into it.

                              streams            with a gradient    answers that are read
    lora, input_fusion, ...   target             target             target
    flare                     sources, target    target             target; span=full: all
    ..., states stored        target             target             target
    x_mixup                   source, target     both               both
    source_prefix            sources, target    target             target

Legend: n rows of a split.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flare_ds.batches.collate import Batch
from flare_ds.config import Config
from flare_ds.data.row_answers import Rows
from flare_ds.data.streams import source_streams


def streams_of(config: Config) -> tuple[str, ...]:
    """The streams a method runs: sources, unless their states are stored, and what it reads in the target's place."""
    return (*source_streams(config.streams_beside), "target")


def longest(lengths: Callable[[str], np.ndarray], streams: tuple[str, ...]) -> np.ndarray:
    """The largest of what `lengths` says of each stream: int [n]."""
    return np.max([lengths(stream) for stream in streams], axis=0)


def positions(rows: Rows, config: Config, lengths: Callable[[str], np.ndarray]) -> np.ndarray:
    """How many positions of the base each row needs; what goes on behind its sources begins where they end: int [n].

    Args:
        rows: as the config's method reads them.
        config: the run's settings.
        lengths: of each stream, with or without its answers.
    """
    longest_n = longest(lengths, streams_of(config))
    if config.recipe.reads != "behind":
        return longest_n
    before_n = np.sum([rows.prompt_lengths(stream) for stream in source_streams(len(config.sources_read))], 0)
    return np.maximum(longest_n, before_n + lengths("target"))


@dataclass(frozen=True)
class Grid:
    """Rows that go through the layers, and how many columns each has there."""

    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Padded tokens."""
        return self.rows * self.columns


class Workload:
    """What a method runs.

    Args:
        config: the run's settings.

    Attributes:
        streams: those that run, the target's last.
        trained: how many of them have a gradient.
        reads_keys: over the columns of how many sources the target's attention goes as well.
        met: how many sources meet the target in the bottleneck, wherever their states come from.
    """

    def __init__(self, config: Config) -> None:
        self.streams = streams_of(config)
        self.mixes = config.recipe.fuses == "mixup"
        self.reads_keys = len(config.sources_read) if config.recipe.fuses == "keys" else 0
        self.trained = len(self.streams) if self.mixes else 1
        self.met = config.sources
        self._answering = self.streams if self.mixes or config.fuses_answers else ("target",)
        self._predicts_words = config.train.objective == "vocabulary"

    def passing(self, batch: Batch) -> Grid:
        """The source rows that only pass through."""
        rows = 0 if self.mixes else len(batch.input_ids) - len(batch.weights_B)
        return Grid(rows, _width(batch.columns[0], batch))

    def columns_before(self, batch: Batch) -> int:
        """Over how many columns of each source the target's attention goes as well, stored or passing."""
        return self.passing(batch).columns if batch.stored_BMKD is None else batch.stored_BMKD.shape[1]

    def training(self, batch: Batch) -> Grid:
        """The rows that have a gradient; streams that are mixed go through a layer in one call."""
        if self.mixes:
            return Grid(*batch.input_ids.shape)
        return Grid(len(batch.weights_B), _width(batch.columns[1], batch))

    def words(self, split: Rows) -> int:
        """Answer positions of the row with the most that are predicted over the whole vocabulary, in all streams."""
        answering = self.streams if self.mixes else ("target",)
        longest_answer = max(int((split.lengths(one) - split.prompt_lengths(one)).max()) for one in answering)
        return len(answering) * longest_answer if self._predicts_words else 0

    def padded_tokens(self, split: Rows, *, behind: int = 0) -> np.ndarray:
        """Tokens each row takes at most in a forward in which it is the longest, over all streams that run: int [n].

        columns = the row's longest prompt + the split's longest answer     since prompts end, and answers start,
        tokens  = columns x streams                                         in the same column

        Args:
            split: the rows.
            behind: most tokens of a label word that are read to tell it apart (objective labels).
        """
        if self._predicts_words:
            answers = [int((split.lengths(one) - split.prompt_lengths(one)).max()) for one in self._answering]
            behind = max(answers) - 1  # the last token is only predicted
        return len(self.streams) * (longest(split.prompt_lengths, self.streams) + behind)


def _width(columns: slice, batch: Batch) -> int:
    return len(range(batch.input_ids.shape[1])[columns])
