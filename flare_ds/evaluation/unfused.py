"""Rows without a source, given to a run whose method reads one: it reads their target alone, and that is told."""

from collections.abc import Sequence

import numpy as np

from flare_ds.config import Config
from flare_ds.data.cache import CacheSplit
from flare_ds.data.parallel import ParallelRow
from flare_ds.data.streams import source_streams
from flare_ds.failures import say


def tell_unfused(config: Config, rows: Sequence[ParallelRow]) -> None:
    """Say how many of a user's rows are read unfused, if any are."""
    alone = sum(not any(row.sources) for row in rows) if config.needs_source else 0
    if alone:
        read = f"method={config.method} reads their targets alone, unfused"
        say(f"{alone} of {len(rows)} rows have no source text: {read}")


def unfused_examples(config: Config, split: CacheSplit) -> int:
    """How many examples of a split have no source text, where the method reads one."""
    prompts = [split.prompt_lengths(stream) for stream in source_streams(len(config.sources_read))]
    return len(np.unique(split.examples[~np.any(prompts, axis=0)]))
