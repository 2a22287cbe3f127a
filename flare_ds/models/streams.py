"""The lockstep streams: sources and target through the frozen base, layer by layer, inside one forward.

    embed        [(S+1)·B, L, D]   source rows, then target rows: masks and rotary tables come for all at once;
                                   up to the last layer each stream has the columns that its own longest row fills
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
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import Cache

from flare_ds.adapters.alignment import Alignment, align_streams
from flare_ds.adapters.decoder import decoder_layers, input_norm
from flare_ds.adapters.inject import fused_layers
from flare_ds.adapters.passes import Pass, current, during
from flare_ds.batches.collate import Batch
from flare_ds.config import Config
from flare_ds.models.layer_calls import SHARED, STORES, LayerCall, call_layer, hidden_of, with_hidden
from flare_ds.models.plain_streams import Streams


@dataclass
class Sources:
    """The sources of one forward.

    Attributes:
        alignment: how their positions meet the target's.
        stored_BMKD: states that were computed before: one for each layer, or one for all; None: lockstep.
        cache: of the sources' own keys and values, when they go on decoding; never the target's.
        keep: whether the last layer also returns the source rows, before the target's.
        shared: keys and values that the sources' layers leave to later ones, in models that share them.
        state_XLD: the source streams after the layer that ran last; None: none has run.
        columns: those that the sources' rows fill, and the target's: all that a layer is to read.
    """

    alignment: Alignment
    stored_BMKD: Tensor | None = None
    cache: Cache | None = None
    keep: bool = False
    shared: dict[str, Any] = field(default_factory=dict)
    state_XLD: Tensor | None = None
    columns: tuple[slice, slice] = (slice(None), slice(None))

    @property
    def stores(self) -> dict[str, Any]:
        """What the sources' layers write into, by the names that layers know it by."""
        return dict.fromkeys(STORES, self.cache) | {SHARED: self.shared}


class LockstepStreams(Streams):
    """Runs all streams through the decoder layers of one model.

    Args:
        model: the base with its adapter.
        config: the run's settings.
        projection: brings an MT encoder's states to the base's width (flare_mt).

    Attributes:
        fused: the layers that fuse, by full name.
        sources: of the forward under way; None: the target alone, plain LoRA.
        past_BCR: when decoding with span=full, what the fused layers remember; see `Pass`.
        energy: while measuring, what they add to; see `Pass`.
    """

    def __init__(self, model: PeftModel, config: Config, projection: nn.Linear | None = None) -> None:
        self.align, self.span = config.adapter.align, config.adapter.span
        self.projection = projection
        self.fused = fused_layers(model)
        self.sources: Sources | None = None
        self.past_BCR: dict[LoraLayer, Tensor] | None = None
        self.energy: dict[LoraLayer, Tensor] | None = None
        layers = decoder_layers(model.get_base_model())
        self.layers = [_LockstepLayer(self, layer, number, config) for number, layer in enumerate(layers)]
        self.layers[-1].is_last = True
        for layer, stand_in in zip(layers, self.layers, strict=True):
            layer.forward = stand_in

    def sources_of(self, batch: Batch) -> Sources | None:
        """How the sources of a batch meet its target rows; None where it has none."""
        if not len(batch.source_lengths_SB):
            return None
        stored = batch.stored_BMKD
        if self.projection is not None:
            assert stored is not None, "an MT encoder's states are always stored"
            stored = self.projection(stored.float())
        source, target = (columns.start for columns in batch.columns)
        alignment = align_streams(
            batch.source_lengths_SB,
            batch.target_lengths_B,
            prompt_columns=batch.prompt_columns - target,
            real_BL=batch.attention_mask[-len(batch.target_lengths_B) :, target:].bool(),
            mode=self.align,
            source_columns=batch.prompt_columns - source if stored is None else stored.shape[1],
            source_answers_SB=batch.source_answers_SB,
        )
        return Sources(alignment, stored_BMKD=stored, columns=batch.columns)

    def first_column(self, batch: Batch) -> int:
        """The first that a row of the target fills."""
        return batch.columns[1].start

    @contextmanager
    def reading(self, sources: Sources | None) -> Iterator[None]:
        """Run the forwards inside with these sources, or for None with the target alone."""
        self.sources = sources
        try:
            yield
        finally:
            self.sources = None

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Let the fused layers remember the target's bottleneck between the forwards inside, if all of them fuse."""
        self.past_BCR = {} if self.span == "full" else None
        try:
            yield
        finally:
            self.past_BCR = None

    @contextmanager
    def measuring(self) -> Iterator[dict[str, Tensor]]:
        """Sum up, over the forwards inside, how much the source contributes to each fused layer.

        Yields:
            Filled at the end: for each fused layer two fp64 sums, over the positions with a partner, of
            |B·(φ(S,T) - φ(0,T))|² and |B·φ(S,T)|².
        """
        sums: dict[str, Tensor] = {}
        self.energy = energy = dict[LoraLayer, Tensor]()
        try:
            yield sums
        finally:
            self.energy = None
        energy = energy or dict.fromkeys(self.fused.values(), torch.zeros(2, dtype=torch.float64))
        found = [energy[layer] for layer in self.fused.values()]
        sums |= zip(self.fused, torch.stack(found).cpu() if found else [], strict=True)  # one transfer for all


class _LockstepLayer:
    """Stands in for one decoder layer's forward."""

    def __init__(self, streams: LockstepStreams, layer: nn.Module, number: int, config: Config) -> None:
        self.streams = streams
        self.number = number
        self.is_last = False
        self.layer = LayerCall(layer)
        self.checkpointing = config.train.gradient_checkpointing
        self.pairing = config.pairing
        self.fused = list(fused_layers(layer).values())
        self.norm = input_norm(layer) if config.norms_source and self.fused else None

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Take [(S+1)·B, L, D] in the first layer, then [B, L, D] of the target; return the target's [B, L, D]."""
        sources, given = self.streams.sources, self.layer.named(args, kwargs)
        if sources is None:
            return self._target_pass(hidden_states, current(), given)
        if sources.stored_BMKD is not None:
            states = sources.stored_BMKD
            state_BMD = states[:, :, self.number if states.shape[2] > 1 else 0]
            return self._target_pass(hidden_states, self._meeting(state_BMD, sources), given)
        return self._lockstep(hidden_states, sources, given)

    def _lockstep(self, hidden_states: Tensor, sources: Sources, given: dict[str, Any]) -> Any:
        rows = sources.alignment.index_SBL[..., 0].numel()
        if sources.state_XLD is None:
            self.layer.check_state(hidden_states)
            source, target = sources.columns
            sources.state_XLD = hidden_states[:rows, source].contiguous()
            hidden_states = hidden_states[rows:, target].contiguous()
        everybody = rows + hidden_states.shape[0]
        of_sources, of_target = self.layer.split(given, rows, everybody, columns=sources.columns)
        of_sources |= {name: store for name, store in sources.stores.items() if name in given}
        before_XLD, inputs = sources.state_XLD, self._source_pass(sources, of_sources)
        if self.pairing == "module":
            meeting = self._meeting_module_inputs(inputs, sources)
        else:
            meeting = self._meeting(sources.state_XLD if self.pairing == "output" else before_XLD, sources)
        output = self._target_pass(hidden_states, meeting, of_target)
        if not self.is_last:
            return output
        if sources.keep:
            return with_hidden(output, torch.cat([sources.state_XLD, hidden_of(output)]))
        # Some models look at the number of columns when they choose those that the head reads.
        return with_hidden(output, F.pad(hidden_of(output), (0, 0, sources.columns[1].start, 0)))

    @torch.no_grad()
    def _source_pass(self, sources: Sources, given: dict[str, Any]) -> dict[LoraLayer, Tensor]:
        """Bring the sources behind this layer; returns what its fused modules read of them.

        Behind the last layer nobody reads them, but for the target that meets its output.
        """
        inputs, is_read = dict[LoraLayer, Tensor](), not self.is_last or sources.keep or self.pairing == "output"
        if is_read or self.pairing == "module":
            enough = None if is_read else lambda: len(inputs) == len(self.fused)
            with during(Pass(adapted=False, inputs=inputs, enough=enough)):
                sources.state_XLD = hidden_of(self.layer.forward(sources.state_XLD, **given))
        return inputs

    def _meeting(self, state_XMD: Tensor, sources: Sources) -> Pass:
        """The target's pass where all fused modules meet one state."""
        if self.norm is not None:
            with torch.no_grad():
                state_XMD = self.norm(state_XMD)
        return self._pass(dict.fromkeys(self.fused, sources.alignment.without_unmet(state_XMD)), sources.alignment)

    def _meeting_module_inputs(self, inputs: dict[LoraLayer, Tensor], sources: Sources) -> Pass:
        """The target's pass where each fused module meets what it read of the sources."""
        assert sources.state_XLD is not None
        # Some layers flatten rows and columns before their feed-forward.
        positions, alignment = sources.state_XLD.shape[:2], sources.alignment
        # q, k and v read one tensor: it stays one, also for the backward pass.
        distinct = {id(x): x for x in inputs.values()}
        met = {key: alignment.without_unmet(x.reshape(*positions, -1)) for key, x in distinct.items()}
        return self._pass({layer: met[id(x)] for layer, x in inputs.items()}, alignment)

    def _pass(self, source_XMD: dict[LoraLayer, Tensor], alignment: Alignment) -> Pass:
        streams = self.streams
        return Pass(source_XMD=source_XMD, alignment=alignment, past_BCR=streams.past_BCR, energy=streams.energy)

    def _target_pass(self, hidden_states: Tensor, this: Pass, given: dict[str, Any]) -> Any:
        def run(hidden_states: Tensor) -> Any:
            with during(this):
                return self.layer.forward(hidden_states, **given)

        return call_layer(run, hidden_states, recompute=self.checkpointing)
