"""Which streams of a row a method runs, and how long they make it."""

from collections.abc import Callable

import numpy as np

from flare_ds.batches.rows_read import SplitRows
from flare_ds.config import Config
from flare_ds.data.streams import source_streams


def streams_of(config: Config) -> tuple[str, ...]:
    """The streams a method runs: sources, unless their states are stored, and what it reads in the target's place."""
    return (*source_streams(config.streams_beside), "target")


def longest_prompts(split: SplitRows, streams: tuple[str, ...]) -> np.ndarray:
    """Tokens of each row's longest prompt over the streams that run: int [n]."""
    return longest(split.prompt_lengths, streams)


def longest(lengths: Callable[[str], np.ndarray], streams: tuple[str, ...]) -> np.ndarray:
    """The largest of what `lengths` says of each stream: int [n]."""
    return np.max([lengths(stream) for stream in streams], axis=0)
