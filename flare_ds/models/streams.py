"""The lockstep streams: source and target through the frozen base, layer by layer, inside one forward.

    embed        [2B, L, D]   source rows, then target rows: masks and rotary tables come for both at once
    layer 0..n   source: the base alone, adapters off, no gradient        s'
                 target: adapters on, fused with the source's state       t'   while the layer's weights are live
    norm, head   [B, L, D]    the target only

Each decoder layer keeps its place and its parameter names; only its `forward` is rebound. That works at the level
of the Hugging Face decoder layer, so no model file is copied, and under ZeRO-3 each frozen weight is gathered once
for both streams (one root forward a step; PAPER's two-forward step gathers it three times).

Legend: B rows a stream, L columns, D the model's width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from flare_ds.adapters.alignment import Alignment
from flare_ds.adapters.inject import ADAPTER, fused_layers
from flare_ds.adapters.variant import FusionVariant
from flare_ds.config import AdapterConfig
from flare_ds.exceptions import ConfigError


class LockstepStreams:
    """Runs the two streams through the decoder layers of one model.

    Attributes:
        alignment: of the batch under way; None: one stream, plain LoRA.
        source_BLD: the source stream after the layer that ran last.
    """

    def __init__(self, model: PeftModel, adapter: AdapterConfig) -> None:
        self.alignment: Alignment | None = None
        self.source_BLD: Tensor | None = None
        for layer in decoder_layers(model.get_base_model()):
            layer.forward = _LockstepLayer(self, layer, adapter)

    @contextmanager
    def aligned(self, alignment: Alignment | None) -> Iterator[None]:
        """Run the forwards inside with two streams (2B rows in, B rows out), or with one for None."""
        self.alignment = alignment
        try:
            yield
        finally:
            self.alignment = self.source_BLD = None


class _LockstepLayer:
    """Stands in for one decoder layer's forward."""

    def __init__(self, streams: LockstepStreams, layer: nn.Module, adapter: AdapterConfig) -> None:
        self.streams = streams
        self.forward: Callable[..., Tensor] = layer.forward
        self.pairing = adapter.pairing
        self.adapters = [module for module in layer.modules() if isinstance(module, LoraLayer)]
        self.fused = list(fused_layers(layer, adapter.fused_modules).values())
        self.norm = _input_norm(layer) if adapter.source_norm and self.pairing != "module" else None
        self.module_inputs: dict[LoraLayer, Tensor] = {}
        self.in_source_pass = False
        if self.pairing == "module":
            for module in self.fused:
                module.register_forward_pre_hook(self._keep_module_input)  # type: ignore[attr-defined]

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Take [2B, L, D] in the first layer, then [B, L, D] of the target; return the target's [B, L, D]."""
        streams = self.streams
        if streams.alignment is None:
            return self.forward(hidden_states, *args, **kwargs)
        if streams.source_BLD is None:
            streams.source_BLD, hidden_states = hidden_states.chunk(2)
        rows = hidden_states.shape[0]
        source_args, target_args = _halve(args, rows)
        source_kwargs, target_kwargs = _halve(kwargs, rows)
        before_BLD = streams.source_BLD
        with torch.no_grad(), self._source_pass():
            streams.source_BLD = self.forward(before_BLD, *source_args, **source_kwargs)
        with self._source_given(before_BLD, streams.source_BLD, streams.alignment):
            return self.forward(hidden_states, *target_args, **target_kwargs)

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

    @contextmanager
    def _source_given(self, before_BLD: Tensor, after_BLD: Tensor, alignment: Alignment) -> Iterator[None]:
        """Hand each fused module the source state it pairs with, and take it away afterwards."""
        state_BLD = after_BLD if self.pairing == "output" else before_BLD
        if self.norm is not None:
            with torch.no_grad():
                state_BLD = self.norm(state_BLD)
        variants = [_variant(module) for module in self.fused]
        for module, variant in zip(self.fused, variants, strict=True):
            variant.source_BLD = self.module_inputs[module] if self.pairing == "module" else state_BLD
            variant.alignment = alignment
        try:
            yield
        finally:
            self.module_inputs.clear()
            for variant in variants:
                variant.source_BLD = variant.alignment = None

    def _keep_module_input(self, module: LoraLayer, inputs: tuple[Tensor, ...]) -> None:
        if self.in_source_pass:
            self.module_inputs[module] = inputs[0]


def decoder_layers(base: nn.Module) -> list[nn.Module]:
    """The decoder layers of a causal language model, in order.

    Raises:
        ConfigError: no list of `num_hidden_layers` layers was found.
    """
    depth = base.config.get_text_config().num_hidden_layers  # type: ignore[operator,union-attr]
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return list(module)
    raise ConfigError(
        f"model.base is a {type(base).__name__} without a list of its {depth} decoder layers",
        fix="use a decoder-only Hugging Face model such as Llama or Gemma",
    )


def _input_norm(layer: nn.Module) -> nn.Module:
    norm = getattr(layer, "input_layernorm", None)
    if norm is None:
        raise ConfigError(
            f"adapter.source_norm=true, but a {type(layer).__name__} has no input_layernorm",
            fix="set adapter.source_norm=false, or adapter.pairing=module",
        )
    return norm


def _variant(module: LoraLayer) -> FusionVariant:
    variant = module.lora_variant[ADAPTER]
    assert isinstance(variant, FusionVariant)
    return variant


def _halve(values: Any, rows: int) -> tuple[Any, Any]:
    """Split what a layer is called with into the source's half and the target's.

    Tensors of 2B rows are cut in two; what is shared by all rows (one row, or no tensor) goes to both.
    """
    if isinstance(values, Tensor):
        if values.ndim and values.shape[0] == 2 * rows:
            return values[:rows], values[rows:]
        return values, values
    if isinstance(values, dict):
        halves = {key: _halve(value, rows) for key, value in values.items()}
        return {key: half[0] for key, half in halves.items()}, {key: half[1] for key, half in halves.items()}
    if isinstance(values, tuple):
        pairs = [_halve(value, rows) for value in values]
        return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    return values, values
