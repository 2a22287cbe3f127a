"""The lockstep streams: sources and target through the frozen base, layer by layer, inside one forward.

    embed        [(S+1)·B, L, D]   source rows, then target rows: masks and rotary tables come for all at once;
                                   up to the last layer each stream has the columns that its own longest row fills
    layer 0..n   sources: the base alone, adapters off, no gradient       s'
                 target:  adapters on, fused with the sources' states     t'   while the layer's weights are live
    norm, head   [B, L, D]         the target only (decoding with span=full: all rows)

All works at the level of the Hugging Face decoder layer, so no model file is copied, and under ZeRO-3 each frozen
weight is gathered once for all streams (one root forward a step; PAPER's two-forward step gathers it three times).

Where the source states are stored (source.provider=cached, method flare_mt) only the target's rows run, and each layer
is handed its state. A batch without sources meets plain LoRA. With gradient checkpointing the target's pass through a
layer is recomputed in the backward pass, from the same source states.

Legend: S sources, B rows a stream, X = S·B, L columns, M source columns, K stored states a position, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import Cache

from flare_ds.adapters.alignment import Alignment, align_streams
from flare_ds.adapters.decoder import decoder_layers, input_norm
from flare_ds.adapters.inject import fused_layers
from flare_ds.adapters.passes import ADAPTER, Pass, alone
from flare_ds.batches.collate import Batch
from flare_ds.config import Config
from flare_ds.models.layer_calls import SHARED, STORES
from flare_ds.models.source_pass import Beside, Left, Wanted
from flare_ds.models.streams import SideBySide, Streams


@dataclass
class Sources:
    """The sources of one forward.

    Attributes:
        alignment: how their positions meet the target's.
        beside: their rows, which run beside the target's; None: their states were computed before.
        measured: whether it is measured what they contribute: what those of a filler do, another rank measures.
        stored_BMKD: their states: one for each layer, or one for all.
    """

    alignment: Alignment
    beside: Beside | None
    measured: bool
    stored_BMKD: Tensor | None = None

    def go_on(self, cache: Cache | None) -> None:
        """Have their rows go on decoding, with a cache of their own: never the target's."""
        assert self.beside is not None
        self.beside.stores, self.beside.keep = dict.fromkeys(STORES, cache) | {SHARED: {}}, True


class LockstepStreams(Streams):
    """Runs all streams through the decoder layers of one model.

    Attributes:
        fused: the layers that fuse, by full name.
        remembered: when decoding with span=full, what the fused layers add to; `past_BCR` of a `Pass`.
        energy: while measuring, what they add to; see `Pass`.
    """

    remembered: dict[LoraLayer, Tensor] | None

    def __init__(
        self, model: PeftModel, config: Config, projection: nn.Linear | None = None, adapter: str = ADAPTER
    ) -> None:
        self.align, self.span, self.adapter = config.adapter.align, config.adapter.span, adapter
        self.projection = projection
        self.fused = fused_layers(model, adapter)
        self.energy: dict[LoraLayer, Tensor] | None = None
        layers = decoder_layers(model.get_base_model())
        self.layers = [
            _LockstepLayer(self, layer, number, config, layer is layers[-1]) for number, layer in enumerate(layers)
        ]

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
        beside = Beside(batch.source_lengths_SB.numel(), batch.columns) if stored is None else None
        measured = self.energy is not None and bool(batch.weights_B.any())  # the latter waits for the device
        return Sources(alignment, beside, measured, stored)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Let the fused layers remember the target's bottleneck between the forwards inside, if all of them fuse."""
        with super().decoding():
            self.remembered = {} if self.span == "full" else None
            yield

    @contextmanager
    def measuring(self) -> Iterator[dict[str, Tensor]]:
        """Sum up, over the forwards inside, how much the source contributes to each fused layer.

        Yields:
            Filled at the end: for each fused layer two fp64 sums, over the positions with a partner of all rows but
            fillers, of |B·(φ(S,T) - φ(0,T))|² and |B·φ(S,T)|².
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


class _LockstepLayer(SideBySide):
    """Takes the target's rows through one decoder layer, fused with the sources."""

    streams: LockstepStreams

    def __init__(self, streams: LockstepStreams, layer: nn.Module, number: int, config: Config, is_last: bool) -> None:
        wanted = Wanted(output=config.pairing == "output", inputs=config.pairing == "module")
        super().__init__(layer, streams, wanted=wanted, is_last=is_last)
        self.number = number
        self.checkpointing = config.train.gradient_checkpointing
        self.pairing = config.pairing
        self.fused = list(fused_layers(layer, streams.adapter).values())
        self.norm = input_norm(layer) if config.norms_source and self.fused else None

    def read(self, hidden_states: Tensor, left: Left | None, given: dict[str, Any]) -> Any:
        """See `SideBySide.read`."""
        return self.call.run(hidden_states, given, self._meeting(left), recompute=self.checkpointing)

    def _meeting(self, left: Left | None) -> Pass:
        """The target's pass, with what its fused modules meet."""
        sources = self.streams.sources
        if sources is None:
            return alone(self.streams.adapter)
        if sources.stored_BMKD is not None:
            states = sources.stored_BMKD
            return self._meeting_state(states[:, :, self.number if states.shape[2] > 1 else 0], sources.alignment)
        assert left is not None
        if self.pairing == "module":
            return self._meeting_inputs(left, sources.alignment)
        state_XMD = left.own(left.after_XMD if self.pairing == "output" else left.before_XMD)
        return self._meeting_state(state_XMD, sources.alignment)

    def _meeting_state(self, state_XMD: Tensor, alignment: Alignment) -> Pass:
        """All fused modules meet one state."""
        if self.norm is not None:
            with torch.no_grad():
                state_XMD = self.norm(state_XMD)
        return self._pass(dict.fromkeys(self.fused, alignment.without_unmet(state_XMD)), alignment)

    def _meeting_inputs(self, left: Left, alignment: Alignment) -> Pass:
        """Each fused module meets what it read of the sources."""
        # Some layers flatten rows and columns before their feed-forward.
        positions, inputs = left.before_XMD.shape[:2], {layer: left.inputs[layer] for layer in self.fused}
        # q, k and v read one tensor: it stays one, also for the backward pass.
        distinct = {id(x): x for x in inputs.values()}
        met = {key: alignment.without_unmet(left.own(x.reshape(*positions, -1))) for key, x in distinct.items()}
        return self._pass({layer: met[id(x)] for layer, x in inputs.items()}, alignment)

    def _pass(self, source_XMD: dict[LoraLayer, Tensor], alignment: Alignment) -> Pass:
        streams = self.streams
        return Pass(
            adapter=streams.adapter,
            source_XMD=source_XMD,
            alignment=alignment,
            past_BCR=streams.remembered,
            energy=streams.energy if streams.sources.measured else None,
        )
