"""Source states, or keys, from a store (source.provider=cached, method flare_mt): found, or computed once on all ranks.

Legend: n positions of a row, D width of the states.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from flare_ds.batches.batching import evaluation_batches
from flare_ds.config import Config, EvaluateConfig
from flare_ds.data.cache import Cache
from flare_ds.data.states import StateStore, StoreId, find_store
from flare_ds.data.states_writer import StoreWriter, check_size
from flare_ds.data.streams import MT
from flare_ds.model_files.fingerprint import model_fingerprint
from flare_ds.models.mt_encoder import MTEncoder
from flare_ds.progress import bar
from flare_ds.runtime.engine import make_room
from flare_ds.runtime.joining import join_if_launched
from flare_ds.runtime.process_group import rank, world_size
from flare_ds.runtime.providers import BaseKeys, BaseStates, EncoderStates, StateComputer
from flare_ds.runtime.rank_zero import agreed, on_rank_zero
from flare_ds.runtime.watchdog import pace

_ROWS = 16
"""In a forward pass, where evaluate.batch_size leaves it open."""


def prepare_states(config: Config, cache: Cache, *, begun: bool) -> StateStore | None:
    """Find the run's stored source states, or compute them; a collective, before the run's model is opened.

    Args:
        config: the run's settings.
        cache: its tokens.
        begun: whether it has begun, so that the settings which decide its results are what they are.

    Returns:
        The store; None where the source streams run beside the target, or there is no source.

    Raises:
        ConfigError: the store would be too large, or the model that computes it cannot be used.
        DataError: the task's rows are not those of the token cache.
        HostError: the disk is full or not writable.
    """
    if not config.stores_states:
        return None
    join_if_launched()
    store, found = on_rank_zero(_look_up, config, cache)
    return found or _build(store, config, cache, begun)


def _without(config: Config, begun: bool) -> list[str]:
    """Which settings would do with a smaller store or none."""
    fewer = [] if begun else ["lower task.train_rows"]
    # An MT encoder's states are always stored. The keys are the same, computed anew or stored.
    beside = config.recipe.fuses == "keys" or not (begun or config.reads_mt_encoder)
    return [*fewer, *(["set source.provider=lockstep"] * beside)]


def for_free_text(config: Config) -> Config:
    """The settings for a text that is in no cache: where its states would be stored, the source runs beside it."""
    return config.having("source", provider="lockstep")


@dataclass(frozen=True)
class FreeTextStates:
    """What the MT encoder says of texts that are in no cache, given as tokens of its own tokenizer.

    Encoded when they are asked for, one at a time: the states of a large file would not fit into memory.
    """

    encoder: MTEncoder
    texts: Sequence[Sequence[int]]

    def states(self, row: int) -> Tensor:
        """States [n, 1, D] of one text."""
        (states_n1D,) = self.encoder.states([self.texts[row]])
        return states_n1D.cpu()


def store_id(config: Config, cache: Cache) -> StoreId:
    """Which store holds the source states of a run: all they depend on, the contents of the model files included.

    Of its cache that is one stream alone. So one store serves all target languages whose sources are the same texts.

    Raises:
        ConfigError: there is no such model.
    """
    source, stream = config.source, MT if config.reads_mt_encoder else "source"
    rows = {name: section.sha256 for name, section in cache.manifest.sections.items() if f".{stream}." in name}
    fields: dict[str, Any] = {"rows": rows, "dtype": config.model.dtype}
    if config.reads_mt_encoder:
        assert source.mt_encoder is not None
        fields |= {"mt_encoder": model_fingerprint(source.mt_encoder), "mt_language": source.mt_language}
        return StoreId("mt_encoder", fields)
    fields |= config.model.model_dump() | {"base": model_fingerprint(config.model.base)}
    return StoreId("cached", fields | {"pairing": "keys" if config.recipe.fuses == "keys" else config.adapter.pairing})


def _look_up(config: Config, cache: Cache) -> tuple[StoreId, StateStore | None]:
    store = store_id(config, cache)
    return store, find_store(store, Path(config.cache_dir))


def _build(store: StoreId, config: Config, cache: Cache, begun: bool) -> StateStore:
    of_base = BaseKeys if config.recipe.fuses == "keys" else BaseStates
    computer: StateComputer = (of_base if store.kind == "cached" else EncoderStates)(config, cache)
    cache_dir = Path(config.cache_dir)
    on_rank_zero(check_size, computer.layout, cache_dir, config.source.max_store_gb, _without(config, begun))
    writer = StoreWriter(store, computer.layout, cache_dir, tag=on_rank_zero(secrets.token_hex, 4))
    try:
        on_rank_zero(writer.reserve)
        computer.load()
        _compute(computer, writer, config.evaluate)
        agreed(writer.sync)
        return on_rank_zero(writer.publish)
    finally:
        if rank() == 0:  # which has reserved them; the other ranks may be writing yet
            writer.discard()
        del computer
        make_room()


def _compute(computer: StateComputer, writer: StoreWriter, evaluate: EvaluateConfig) -> None:
    """Compute the states of every row of every split once, each rank its share, and write them."""
    for split, lengths in computer.layout.lengths.items():
        size = _ROWS if evaluate.batch_size == "auto" else evaluate.batch_size
        batches = evaluation_batches(
            lengths, world_size=world_size(), batch_size=size, batch_tokens=evaluate.batch_tokens
        )[rank()]
        progress = bar(batches, desc=f"states of {split}", unit="batch", disable=rank() > 0)
        with pace("computing source states", steady=False) as beat:
            for micro_batch in progress:
                states = computer.states(split, micro_batch)
                for row, weight, states_nKD in zip(micro_batch.rows, micro_batch.weights, states, strict=True):
                    if weight:
                        writer.write(split, int(row), states_nKD)
                beat()
