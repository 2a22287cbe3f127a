"""Going over a split once: each row in one batch of one rank, whatever is asked of it.

All ranks run the same number of batches (filler rows weigh 0), as ZeRO-3's gathers demand.

Legend: n rows of the split.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from flare_ds.config import Config
from flare_ds.data.batching import evaluation_batches
from flare_ds.data.cache import Cache, CacheSplit
from flare_ds.data.collate import Batch, collate
from flare_ds.data.states import StateStore
from flare_ds.data.streams import source_streams
from flare_ds.training.process_group import device, gather_objects, rank, world_size

T = TypeVar("T")
Ask = Callable[[Batch, list[int]], Sequence[T]]
"""Runs the model on a batch, whose row numbers it is told too; gives one answer a row."""


def ask_each_row(ask: Ask[T], cache: Cache, split_name: str, config: Config, *, states: StateStore | None) -> list[T]:
    """Ask something of every row of a split; a collective, with the same result on every rank.

    Args:
        ask: what is asked.
        cache: the run's tokens.
        split_name: train, validation or test.
        config: the run's settings.
        states: the run's stored source states, if its provider stores them.

    Returns:
        The answers in cache order: n of them.
    """
    split, streams = cache.split(split_name), streams_of(config)
    stored = None if states is None else states.split(split_name)
    batches = evaluation_batches(
        len(streams) * longest_prompts(split, streams),
        world_size=world_size(),
        batch_size=config.evaluate.batch_size,
        batch_tokens=config.evaluate.batch_tokens,
    )[rank()]
    mine: list[tuple[int, T]] = []
    for micro_batch in tqdm(batches, desc=split_name, unit="batch", disable=rank() > 0, leave=False, file=sys.stderr):
        batch = collate(split, micro_batch, streams=streams, objective="labels", pad_id=cache.pad_id, stored=stored)
        rows = micro_batch.rows.tolist()
        answers = zip(rows, ask(batch.to(device()), rows), micro_batch.weights, strict=True)
        mine += [(row, answer) for row, answer, weight in answers if weight]
    answered = [pair for part in gather_objects(mine) for pair in part]
    by_row = dict(answered)
    assert len(by_row) == len(answered) == len(split), "a row was asked twice or not at all"
    return [by_row[row] for row in range(len(split))]


def streams_of(config: Config) -> tuple[str, ...]:
    """The cached streams a method runs: sources, unless their states are stored, and the target."""
    sources = config.sources if config.source.provider == "lockstep" else 0
    return (*source_streams(sources), "target")


def longest_prompts(split: CacheSplit, streams: tuple[str, ...]) -> np.ndarray:
    """Tokens of each row's longest prompt over the streams that run: int [n]."""
    return np.max([split.prompt_lengths(stream) for stream in streams], axis=0)
