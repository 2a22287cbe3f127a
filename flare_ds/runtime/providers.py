"""Computing source states: what a store is filled with, a micro-batch of rows at a time, on all ranks.

    BaseStates      the frozen base's states of the source prompts, one for each layer: every rank runs the same number
                    of forwards, for its base may be sharded
    BaseKeys        the keys and values that each layer's attention made of the source prompts
    EncoderStates   an MT encoder's last states of the target texts, one for all layers: the encoder is whole on every
                    rank

Legend: n positions of a row, K states a position, D their width, B rows, L columns.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from flare_ds.adapters.decoder import decoder_layers
from flare_ds.batches.batching import MicroBatch
from flare_ds.batches.collate import Batch, collate
from flare_ds.batches.rows_read import rows_read
from flare_ds.config import Config
from flare_ds.data.cache import Cache, CacheSplit
from flare_ds.data.states_writer import Layout
from flare_ds.data.streams import MT
from flare_ds.exceptions import ConfigError
from flare_ds.models.layer_calls import hidden_of
from flare_ds.models.loading import load_shape
from flare_ds.models.mt_encoder import MTEncoder, mt_width
from flare_ds.runtime.engine import RunningModel
from flare_ds.runtime.opening import open_model
from flare_ds.runtime.process_group import device
from flare_ds.runtime.rank_zero import agreed


class _OfBase:
    """What the frozen base makes of every source prompt, by itself."""

    def __init__(self, config: Config, cache: Cache) -> None:
        # The bare base with the small head: neither adapter nor vocabulary matters to the states.
        self.config = config.having("train", objective="labels").model_copy(update={"method": "zero_shot"})
        self.cache, self.shape = cache, agreed(load_shape, config.model)
        self.rows = {name: rows_read(cache.split(name), config, cache.manifest) for name in cache.manifest.splits}
        self.lengths = {name: rows.prompt_lengths("source") for name, rows in self.rows.items()}

    def load(self) -> None:
        """Open the base."""
        words = self.cache.label_tokens or [[self.cache.pad_id]]  # free answers have none; a head of no rows is no head
        self.running: RunningModel = open_model(self.config, shape=self.shape, label_tokens=words)
        self.running.root.eval()

    def _batch(self, split: str, micro_batch: MicroBatch) -> Batch:
        """The source prompts of rows."""
        rows, pad_id = self.rows[split], self.cache.pad_id
        batch = collate(rows, micro_batch, streams=("source",), objective="labels", pad_id=pad_id)
        return batch.to(self.running.device)


class BaseStates(_OfBase):
    """The frozen base's own states of every source prompt: the input or the output of each of its layers.

    The states are taken at the layers themselves. Hugging Face's `hidden_states` end in the state *after* the final
    norm, which is not what the last layer of the target sees in lockstep. adapter.pairing says which side of a layer.
    """

    def __init__(self, config: Config, cache: Cache) -> None:
        super().__init__(config, cache)
        self.take_input = config.adapter.pairing == "input"
        text = self.shape.config.get_text_config()
        self.layout = Layout(self.lengths, (text.num_hidden_layers, text.hidden_size), states_dtype(config))
        self.taken_KBLD: list[Tensor] = []

    def load(self) -> None:
        """Open the base and listen at its layers."""
        super().load()
        taken = self.taken_KBLD  # the hooks hold no more of this, which would seem held as long as the model is there
        for layer in decoder_layers(self.running.model.base):
            if self.take_input:
                layer.register_forward_pre_hook(partial(_take_input, taken), with_kwargs=True)
            else:
                layer.register_forward_hook(partial(_take_output, taken))

    @torch.no_grad()
    def states(self, split: str, micro_batch: MicroBatch) -> list[Tensor]:
        """States [n, K, D] of each source prompt; a collective."""
        batch = self._batch(split, micro_batch)
        self.taken_KBLD.clear()
        self.running.root(batch)
        return _of_prompts(torch.stack(self.taken_KBLD, 2), batch)


def _take_input(taken_KBLD: list[Tensor], layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    taken_KBLD.append(args[0] if args else kwargs["hidden_states"])


def _take_output(taken_KBLD: list[Tensor], layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    taken_KBLD.append(hidden_of(output))


def _of_prompts(states_BLKD: Tensor, batch: Batch) -> list[Tensor]:
    """The states [n, K, D] of each row's prompt, without its padding; of an empty one none."""
    columns = states_BLKD.shape[1]
    return [states_BLKD[row, columns - n :] for row, n in enumerate(batch.target_lengths_B.tolist())]


class BaseKeys(_OfBase):
    """The frozen base's keys and values of every source prompt, in each of its layers.

    They are those before which a source_prefix row stands (`flare_ds.models.prefix_streams`): rotated already, as the
    prompt begins at position 0. Of a position, each layer keeps its heads' keys, then its heads' values.

    Raises:
        ConfigError: the base's layers do not keep keys of one size.
    """

    def __init__(self, config: Config, cache: Cache) -> None:
        super().__init__(config, cache)
        layers = decoder_layers(self.shape)
        self.layout = Layout(self.lengths, (len(layers), 2 * key_width(layers)), states_dtype(config))

    @torch.no_grad()
    def states(self, split: str, micro_batch: MicroBatch) -> list[Tensor]:
        """Keys and values [n, N, 2·H·K] of each source prompt; a collective."""
        batch = self._batch(split, micro_batch)
        past = DynamicCache()  # without a config, so that sliding layers keep all
        self.running.root(batch, past=past)
        both = [torch.cat([getattr(layer, name) for name in ("keys", "values")], 1) for layer in past.layers]
        states_BLND = torch.stack([both_BHLK.transpose(1, 2).flatten(2) for both_BHLK in both], 2)
        return _of_prompts(states_BLND, batch)


def key_width(layers: Sequence[nn.Module]) -> int:
    """Numbers in the keys of one position of a layer.

    Raises:
        ConfigError: layers differ in it, or do not tell it.
    """
    found = {
        module.out_features
        for layer in layers
        for name, module in layer.named_modules()
        if name.rpartition(".")[2] == "k_proj" and isinstance(module, nn.Linear)
    }
    if len(found) != 1:
        raise ConfigError(
            f"source.provider='cached' stores keys of one size for all layers, but model.base has {sorted(found)}",
            fix="use source.provider=lockstep",
        )
    return found.pop()


class EncoderStates:
    """An MT encoder's last hidden states of every target text, whose tokens are a stream of the cache.

    Raises:
        ConfigError: there is no such encoder.
    """

    def __init__(self, config: Config, cache: Cache) -> None:
        self.config = config
        self.splits: dict[str, CacheSplit] = {split: cache.split(split) for split in cache.manifest.splits}
        lengths: dict[str, np.ndarray] = {name: split.prompt_lengths(MT) for name, split in self.splits.items()}
        self.layout = Layout(lengths, (1, agreed(mt_width, config.source)), states_dtype(config))

    def load(self) -> None:
        """Load the encoder."""
        source, dtype = self.config.source, states_dtype(self.config)
        self.encoder = agreed(lambda: MTEncoder(source, dtype=dtype, device=device()))

    def states(self, split: str, micro_batch: MicroBatch) -> list[Tensor]:
        """States [n, 1, D] of each target text."""
        return self.encoder.states([self.splits[split].prompt(MT, row).tolist() for row in micro_batch.rows])


StateComputer = BaseStates | BaseKeys | EncoderStates
"""Computes the states of a task's rows; `layout` says how much that will be."""


def states_dtype(config: Config) -> torch.dtype:
    """The precision in which states are computed and kept: the base's."""
    return getattr(torch, config.model.dtype)
