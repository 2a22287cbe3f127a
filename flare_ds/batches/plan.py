"""What a run trains on, step by step, known from its settings and the cache's lengths before the first step.

The order is the same for every method and any number of ranks: it looks at the cache alone, not at what a method reads.
How much fits into one forward does depend on the method: only the streams that run take memory.

Legend: n rows of the training split.
"""

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np

from flare_ds.batches.order import NamedOrder, Order, RowOrder, TokenOrder, name_keys
from flare_ds.config import Config, TrainConfig
from flare_ds.data.cache import Cache, CacheSplit
from flare_ds.data.streams import source_streams
from flare_ds.exceptions import ConfigError


def open_order(config: Config, cache: Cache) -> Order:
    """The order of a run's training rows.

    Raises:
        ConfigError: a row is larger than train.batch_tokens.
    """
    train, split = config.train, cache.split("train")
    if train.batch_tokens is None:
        if train.data_seed is None:
            return RowOrder(len(split), train.batch_size, train.seed)
        return NamedOrder(len(split), train.batch_size, train.data_seed, row_keys(cache))
    sources = len(config.task.source_languages) if config.has_source else 0
    lengths_n = np.sum([split.lengths(stream) for stream in (*source_streams(sources), "target")], axis=0)
    _check_fits(split, lengths_n, train.batch_tokens)
    return TokenOrder(lengths_n, train.batch_tokens, train.order_seed)


@lru_cache(maxsize=64)
def row_keys(cache: Cache) -> np.ndarray:
    """Numbers for the names of the training rows: uint64 [n]; kept, for runs that train together share their caches."""
    split = cache.split("train")
    return name_keys(map(split.ids, range(len(split))))


def number_of_steps(train: TrainConfig, order: Order) -> int:
    """Optimizer steps of the run: train.steps, or those that go through train.epochs."""
    if train.epochs is None:
        assert train.steps is not None, "one of the two is set"
        return train.steps
    # The decimal fraction that was written: as floats, 0.07 epochs of 100 steps would be 8 steps.
    return math.ceil(Fraction(str(train.epochs)) * order.steps_per_epoch)


def _check_fits(split: CacheSplit, lengths_n: np.ndarray, batch_tokens: int) -> None:
    row = int(lengths_n.argmax())
    if lengths_n[row] > batch_tokens:
        raise ConfigError(
            f"train.batch_tokens={batch_tokens}, but training row {split.ids(row)!r} alone has {lengths_n[row]} tokens "
            "(prompts and answers of all languages)",
            fix=f"set train.batch_tokens to {lengths_n[row]} or more, or lower task.max_prompt_tokens",
        )
