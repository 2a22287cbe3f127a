"""The lockstep streams: sources and target through the frozen base, layer by layer, inside one forward.

    embed        [(S+1)·B, L, D]   source rows, then target rows: masks and rotary tables come for all at once
    layer 0..n   sources: the base alone, adapters off, no gradient       s'
                 target:  adapters on, fused with the sources' states     t'   while the layer's weights are live
    norm, head   [B, L, D]         the target only (decoding with span=full: all rows)

Each decoder layer keeps its place and its parameter names; only its `forward` is rebound. That works at the level
of the Hugging Face decoder layer, so no model file is copied, and under ZeRO-3 each frozen weight is gathered once
for all streams (one root forward a step; PAPER's two-forward step gathers it three times).

Where the source states are stored (source.provider=cached, method flare_mt) only the target's rows run, and each layer
is handed its state. A batch without sources meets plain LoRA. With gradient checkpointing the target's pass through a
layer is recomputed in the backward pass, from the same source states.

Legend: S sources, B rows a stream, X = S·B, L columns, M source columns, K stored states a position, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import Cache

from flare_ds.adapters.alignment import Alignment, align_streams
from flare_ds.adapters.decoder import decoder_layers, input_norm
from flare_ds.adapters.inject import ADAPTER, fused_layers
from flare_ds.adapters.variant import FusionVariant, Given
from flare_ds.batches.collate import Batch
from flare_ds.config import Config
from flare_ds.models.layer_calls import SHARED, STORES, LayerCall, call_layer, hidden_of, with_hidden
from flare_ds.models.loss import batch_loss


@dataclass
class Sources:
    """The sources of one forward.

    Attributes:
        alignment: how their positions meet the target's.
        stored_BMKD: states that were computed before: one for each layer, or one for all; None: lockstep.
        cache: of the sources' own keys and values, when they go on decoding; never the target's.
        keep: whether the last layer also returns the source rows, before the target's.
        shared: keys and values that the sources' layers leave to later ones, in models that share them.
    """

    alignment: Alignment
    stored_BMKD: Tensor | None = None
    cache: Cache | None = None
    keep: bool = False
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def stores(self) -> dict[str, Any]:
        """What the sources' layers write into, by the names that layers know it by."""
        return dict.fromkeys(STORES, self.cache) | {SHARED: self.shared}


class LockstepStreams:
    """Runs all streams through the decoder layers of one model.

    Args:
        model: the base with its adapter.
        config: the run's settings.
        projection: brings an MT encoder's states to the base's width (flare_mt).

    Attributes:
        sources: of the forward under way; None: the target alone, plain LoRA.
        state_XLD: the source streams after the layer that ran last.
    """

    def __init__(self, model: PeftModel, config: Config, projection: nn.Linear | None = None) -> None:
        self.align, self.span = config.adapter.align, config.adapter.span
        self.projection = projection
        self.sources: Sources | None = None
        self.state_XLD: Tensor | None = None
        layers = decoder_layers(model.get_base_model())
        self.layers = [_LockstepLayer(self, layer, number, config) for number, layer in enumerate(layers)]
        self.layers[-1].is_last = True
        for layer, stand_in in zip(layers, self.layers, strict=True):
            layer.forward = stand_in
        self.variants = {
            name: _variant(module) for name, module in fused_layers(model, config.adapter.fused_modules).items()
        }

    def sources_of(self, batch: Batch) -> Sources | None:
        """How the sources of a batch meet its target rows; None where it has none."""
        if not len(batch.source_lengths_SB):
            return None
        stored = batch.stored_BMKD
        if self.projection is not None:
            assert stored is not None, "an MT encoder's states are always stored"
            stored = self.projection(stored.float())
        alignment = align_streams(
            batch.source_lengths_SB,
            batch.target_lengths_B,
            prompt_columns=batch.prompt_columns,
            real_BL=batch.attention_mask[-len(batch.target_lengths_B) :].bool(),
            mode=self.align,
            source_columns=None if stored is None else stored.shape[1],
            source_answers_SB=batch.source_answers_SB,
        )
        return Sources(alignment, stored_BMKD=stored)

    @contextmanager
    def reading(self, sources: Sources | None) -> Iterator[None]:
        """Run the forwards inside with these sources, or for None with the target alone."""
        self.sources = sources
        try:
            yield
        finally:
            self.sources = self.state_XLD = None

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Let the fused layers remember the target's bottleneck between the forwards inside, if all of them fuse."""
        for variant in self.variants.values():
            variant.decoding = self.span == "full"
        try:
            yield
        finally:
            for variant in self.variants.values():
                variant.decoding, variant.past_BCR = False, None

    @contextmanager
    def measuring(self) -> Iterator[dict[str, Tensor]]:
        """Sum up, over the forwards inside, how much the source contributes to each fused layer.

        Yields:
            For each fused layer two fp64 sums: see `FusionVariant.energy`.
        """
        sums = {name: torch.zeros(2, dtype=torch.float64) for name in self.variants}
        for name, variant in self.variants.items():
            variant.energy = sums[name]
        try:
            yield sums
        finally:
            for variant in self.variants.values():
                variant.energy = None

    def loss(self, logits_BNK: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch, summed over its answers."""
        return batch_loss(logits_BNK, batch)


class _LockstepLayer:
    """Stands in for one decoder layer's forward."""

    def __init__(self, streams: LockstepStreams, layer: nn.Module, number: int, config: Config) -> None:
        self.streams = streams
        self.number = number
        self.is_last = False
        self.layer = LayerCall(layer)
        self.checkpointing = config.train.gradient_checkpointing
        self.pairing = config.pairing
        self.adapters = [module for module in layer.modules() if isinstance(module, LoraLayer)]
        self.fused = list(fused_layers(layer, config.adapter.fused_modules).values())
        self.norm = input_norm(layer) if config.norms_source and self.fused else None
        self.module_inputs: dict[LoraLayer, Tensor] = {}
        self.in_source_pass = False
        if self.pairing == "module":
            for module in self.fused:
                module.register_forward_pre_hook(self._keep_module_input)  # type: ignore[attr-defined]

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Take [(S+1)·B, L, D] in the first layer, then [B, L, D] of the target; return the target's [B, L, D]."""
        sources, given = self.streams.sources, self.layer.named(args, kwargs)
        if sources is None:
            return self._target_pass(hidden_states, [], given)
        if sources.stored_BMKD is not None:
            states = sources.stored_BMKD
            state_BMD = states[:, :, self.number if states.shape[2] > 1 else 0]
            return self._target_pass(hidden_states, self._fused(state_BMD, sources), given)
        return self._lockstep(hidden_states, sources, given)

    def _lockstep(self, hidden_states: Tensor, sources: Sources, given: dict[str, Any]) -> Any:
        streams, rows = self.streams, sources.alignment.index_SBL[..., 0].numel()
        if streams.state_XLD is None:
            self.layer.check_state(hidden_states)
            streams.state_XLD, hidden_states = hidden_states[:rows], hidden_states[rows:]
        everybody = rows + hidden_states.shape[0]
        of_sources, of_target = self.layer.split(given, rows, everybody)
        of_sources |= {name: store for name, store in sources.stores.items() if name in given}
        before_XLD = streams.state_XLD
        with torch.no_grad(), self._source_pass():
            streams.state_XLD = hidden_of(self.layer.forward(before_XLD, **of_sources))
        paired_XLD = streams.state_XLD if self.pairing == "output" else before_XLD
        output = self._target_pass(hidden_states, self._fused(paired_XLD, sources), of_target)
        if self.is_last and sources.keep:
            return with_hidden(output, torch.cat([streams.state_XLD, hidden_of(output)]))
        return output

    @contextmanager
    def _source_pass(self) -> Iterator[None]:
        """Switch this layer's adapters off; PEFT's own flag, so requires_grad is never touched."""
        self.in_source_pass = True
        for module in self.adapters:
            module._disable_adapters = True
        try:
            yield
        finally:
            self.in_source_pass = False
            for module in self.adapters:
                module._disable_adapters = False

    def _fused(self, state_XMD: Tensor, sources: Sources) -> list[Given]:
        """What each fused module of this layer fuses."""
        alignment = sources.alignment
        if self.pairing == "module":
            # Some layers flatten rows and columns before their feed-forward.
            states = [
                alignment.without_unmet(self.module_inputs.pop(module).reshape(*state_XMD.shape[:2], -1))
                for module in self.fused
            ]
        else:
            if self.norm is not None:
                with torch.no_grad():
                    state_XMD = self.norm(state_XMD)
            states = [alignment.without_unmet(state_XMD)] * len(self.fused)
        return [Given(state, alignment) for state in states]

    def _target_pass(self, hidden_states: Tensor, fused: list[Given], given: dict[str, Any]) -> Any:
        def run(hidden_states: Tensor) -> Any:
            with self._source_given(fused):
                return self.layer.forward(hidden_states, **given)

        return call_layer(run, hidden_states, recompute=self.checkpointing)

    @contextmanager
    def _source_given(self, given: list[Given]) -> Iterator[None]:
        """Hand each fused module its source, and take it away afterwards."""
        variants = [_variant(module) for module in self.fused] if given else []
        for variant, its in zip(variants, given, strict=True):
            variant.given = its
        try:
            yield
        finally:
            for variant in variants:
                variant.given = None

    def _keep_module_input(self, module: LoraLayer, inputs: tuple[Tensor, ...]) -> None:
        if self.in_source_pass:
            self.module_inputs[module] = inputs[0]


def _variant(module: LoraLayer) -> FusionVariant:
    variant = module.lora_variant[ADAPTER]
    assert isinstance(variant, FusionVariant)
    return variant
