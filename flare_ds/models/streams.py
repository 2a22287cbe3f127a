"""How the rows of a batch go through the base: what a model asks of its streams, and what stands in for its layers.

PlainStreams      lora, input_fusion, what trains nothing          the target's rows alone
LockstepStreams   flare, flare_mt                                  beside the sources', fused in the bottleneck
MixupStreams      x_mixup                                          beside the source's, mixed at one layer
PrefixStreams     source_prefix                                    behind the source's keys and values

Each decoder layer keeps its place and its parameter names; only its `forward` is rebound.

Legend: X source rows, B target rows, L columns, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel

from flare_ds.adapters.decoder import decoder_layers
from flare_ds.adapters.passes import ADAPTER, alone
from flare_ds.batches.collate import Batch
from flare_ds.config import Config
from flare_ds.models.layer_calls import LayerCall, hidden_of, with_hidden
from flare_ds.models.loss import batch_loss
from flare_ds.models.source_pass import Beside, Left, SourcePass, Wanted


class Streams(ABC):
    """Runs the rows of a batch through the decoder layers of one model.

    Attributes:
        layers: what stands in for the forward of each decoder layer.
        sources: what the target's rows meet in the forward under way; None: they are read alone.
        is_decoding: whether later forwards go on behind this one.
        remembered: what these need of earlier ones besides the cache, in this method's own words.
    """

    layers: Sequence[Callable[..., Any]]
    sources: Any = None
    is_decoding = False
    remembered: Any = None

    @abstractmethod
    def sources_of(self, batch: Batch) -> Any:
        """What the target's rows of a batch meet, in this method's own words; None: they are read alone."""

    def first_column(self, batch: Batch) -> int:
        """The first column of the target that goes through the layers, and into its cache when decoding."""
        return batch.columns[1].start

    def positions(self, batch: Batch, sources: Any) -> Tensor:
        """The positions of the columns of a batch: each row's own, from 0, unless its streams say otherwise."""
        return batch.position_ids

    def target_cache(self, config: PreTrainedConfig) -> Cache:
        """An empty cache for the target's keys and values: as the base's own."""
        return DynamicCache(config=config)

    @contextmanager
    def reading(self, sources: Any, *, at_head: slice = slice(None)) -> Iterator[None]:
        """Run the forwards inside with these sources, or for None with the target alone.

        Args:
            sources: they.
            at_head: which of the rows that the head reads are its own; those of others may be among them.
        """
        self.sources, self.at_head = sources, at_head
        try:
            yield
        finally:
            self.sources = None

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Keep, between the forwards inside, what later ones need of earlier ones."""
        self.is_decoding = True
        try:
            yield
        finally:
            self.is_decoding, self.remembered = False, None

    @contextmanager
    def measuring(self) -> Iterator[dict[str, Tensor]]:
        """Sum up, over the forwards inside, how much the source contributes to each fused layer: here none is."""
        yield {}

    def loss(self, logits_BNK: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch that was just read, summed over its answers."""
        return batch_loss(logits_BNK, batch)


class PlainStreams(Streams):
    """The target's rows through the layers as they are."""

    def __init__(self, base: PreTrainedModel, config: Config, adapter: str = ADAPTER) -> None:
        recompute = config.train.gradient_checkpointing
        self.layers = [PlainLayer(layer, adapter, recompute=recompute) for layer in decoder_layers(base)]

    def sources_of(self, batch: Batch) -> None:
        """Nothing is met."""


class PlainLayer:
    """Takes rows through one decoder layer as they are.

    Args:
        recompute: whether the backward pass calls it again.
    """

    wanted = Wanted()

    def __init__(self, layer: nn.Module, adapter: str, *, recompute: bool) -> None:
        self.call, self.adapter, self.recompute = LayerCall(layer), adapter, recompute

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns."""
        return self.read(hidden_states, None, self.call.named(args, kwargs))

    def read(self, hidden_states: Tensor, _left: Left | None, given: dict[str, Any]) -> Any:
        """The same, of rows that no source stands beside."""
        return self.call.run(hidden_states, given, alone(self.adapter), recompute=self.recompute)


class SideBySide(ABC):
    """Stands in for one decoder layer's forward: the sources of a batch, if it has any, and then the target's rows.

    This is how one method takes the target's rows through a decoder layer. Alone it runs the sources of its own batch;
    among the cells of a job (`flare_ds.models.joint`) these run once for all, and each cell reads of them the rows and
    columns of its own batch.

    Args:
        streams: whose sources tell the rows that stand beside the target's.
        wanted: what `read` reads of this layer's pass over the sources.
    """

    def __init__(self, layer: nn.Module, streams: Streams, *, wanted: Wanted, is_last: bool) -> None:
        self.call, self.streams, self.wanted, self.is_last = LayerCall(layer), streams, wanted, is_last
        self.sources = SourcePass(layer, self.call)

    @abstractmethod
    def read(self, hidden_states: Tensor, left: Left | None, given: dict[str, Any]) -> Any:
        """Take the target's rows through the layer.

        Args:
            hidden_states: [B, L, D].
            left: what the sources left in this layer; None: they were not read here.
            given: what else the layer is called with.

        Returns:
            What the layer returns.
        """

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Take [X + B, L, D] in the first layer, then [B, L, D] of the target; return the target's [B, L, D]."""
        given, sources = self.call.named(args, kwargs), self.streams.sources
        beside: Beside | None = None if sources is None else sources.beside
        if beside is None:
            return self.read(hidden_states, None, given)
        if beside.state_XMD is None:
            self.call.check_state(hidden_states)
            source, target = beside.columns
            beside.state_XMD = hidden_states[: beside.rows, source].contiguous()
            hidden_states = hidden_states[beside.rows :, target].contiguous()
        everybody = beside.rows + hidden_states.shape[0]
        of_sources, of_target = self.call.split(given, beside.rows, everybody, columns=beside.columns)
        wanted = self.wanted | Wanted(output=not self.is_last or beside.keep)  # behind the last layer nobody reads it
        output = self.read(hidden_states, self.sources(beside, of_sources, wanted), of_target)
        if not self.is_last:
            return output
        if beside.keep:
            return with_hidden(output, torch.cat([beside.state_XMD, hidden_of(output)]))
        # Some models look at the number of columns when they choose those that the head reads.
        return with_hidden(output, F.pad(hidden_of(output), (0, 0, beside.columns[1].start, 0)))
