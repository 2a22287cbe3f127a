"""How the rows of a batch go through the base: what a model asks of its streams, and the plain way, one text a row.

PlainStreams      lora, input_fusion, what trains nothing          the target's rows alone
LockstepStreams   flare, flare_mt                                  beside the sources', fused in the bottleneck
MixupStreams      x_mixup                                          beside the source's, mixed at one layer
PrefixStreams     source_prefix                                    behind the source's keys and values
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel

from flare_ds.adapters.decoder import decoder_layers
from flare_ds.adapters.passes import ADAPTER, alone
from flare_ds.batches.collate import Batch
from flare_ds.config import Config
from flare_ds.models.layer_calls import LayerCall
from flare_ds.models.loss import batch_loss
from flare_ds.models.source_pass import Left, Wanted


class Streams(ABC):
    """Runs the rows of a batch through the decoder layers of one model.

    Attributes:
        layers: what stands in for the forward of each decoder layer.
        sources: what the target's rows meet in the forward under way; None: they are read alone.
    """

    layers: Sequence[Callable[..., Any]]
    sources: Any = None

    @abstractmethod
    def sources_of(self, batch: Batch) -> Any:
        """What the target's rows of a batch meet, in this method's own words; None: they are read alone."""

    def first_column(self, batch: Batch) -> int:
        """The first column of the target that goes through the layers, and into its cache when decoding."""
        return 0

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
        """Keep, between the forwards inside, what later ones need of earlier ones: here nothing but the cache."""
        yield

    @contextmanager
    def measuring(self) -> Iterator[dict[str, Tensor]]:
        """Sum up, over the forwards inside, how much the source contributes to each fused layer: here none is."""
        yield {}

    def loss(self, logits_BNK: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch that was just read, summed over its answers."""
        return batch_loss(logits_BNK, batch)


class PlainStreams(Streams):
    """The target's rows through the layers as they are.

    Args:
        base: the model, with or without an adapter in it.
        config: the run's settings.
        adapter: the adapter's name.
    """

    def __init__(self, base: PreTrainedModel, config: Config, adapter: str = ADAPTER) -> None:
        recompute = config.train.gradient_checkpointing
        self.layers = [PlainLayer(layer, adapter, recompute=recompute) for layer in decoder_layers(base)]

    def sources_of(self, batch: Batch) -> None:
        """Nothing is met."""


class PlainLayer:
    """Takes rows through one decoder layer as they are.

    Args:
        layer: the layer.
        adapter: the name of the adapter that is on.
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
