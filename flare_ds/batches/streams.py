"""Which streams of a row a method runs, how long they make it, and how many positions they take."""

from collections.abc import Callable

import numpy as np

from flare_ds.batches.rows_read import SplitRows
from flare_ds.config import Config
from flare_ds.data.streams import source_streams


def streams_of(config: Config) -> tuple[str, ...]:
    """The streams a method runs: sources, unless their states are stored, and what it reads in the target's place."""
    return (*source_streams(config.streams_beside), "target")


def longest(lengths: Callable[[str], np.ndarray], streams: tuple[str, ...]) -> np.ndarray:
    """The largest of what `lengths` says of each stream: int [n]."""
    return np.max([lengths(stream) for stream in streams], axis=0)


def positions(rows: SplitRows, config: Config, lengths: Callable[[str], np.ndarray]) -> np.ndarray:
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
