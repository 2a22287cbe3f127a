"""The baseline of the lockstep step: FLARE in two whole forwards, as it is commonly written.

    forward 1   source rows, adapters off, no gradient; each layer's output is kept
    forward 2   target rows; each fused layer meets the kept output of its own layer

It fuses through the same `AdaptedLinear`, so it computes the same numbers; only the order of the work differs. Under
ZeRO-3 the frozen weights are gathered in both forwards and in the backward, and DeepSpeed's parameter trace, which
runs from one root forward to the next, breaks in every step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flare_ds.adapters.decoder import decoder_layers
from flare_ds.adapters.passes import Pass, during
from flare_ds.batches.collate import Batch
from flare_ds.models.layer_calls import hidden_of
from flare_ds.models.two_stream import TwoStreamModel


class TwoForwards:
    """Calls a model, or the engine around it, twice for a batch of both streams."""

    def __init__(self, model: TwoStreamModel) -> None:
        self.model = model
        self.states: list[Tensor] = []
        self.keeping = False
        for layer in decoder_layers(model.base):
            layer.register_forward_hook(self._keep)

    def __call__(self, root: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Logits of the target's answer positions, as one lockstep forward gives them.

        Args:
            root: the model, or its engine.
            batch: rows of one source and of the target.
        """
        rows = len(batch.target_lengths_B)
        source, target = part(batch, slice(None, -rows)), part(batch, slice(-rows, None))
        with torch.no_grad(), self._source_pass():
            root(replace(source, target_lengths_B=batch.source_lengths_SB[0]))
        stored_BMKD = torch.stack(self.states, 2)
        self.states.clear()
        sources = self.model.streams.sources_of(replace(batch, first_columns=(0, 0)))
        return root(target, sources=replace(sources, beside=None, stored_BMKD=stored_BMKD))

    @contextmanager
    def _source_pass(self) -> Iterator[None]:
        self.keeping = True
        try:
            with during(Pass(adapted=False)):
                yield
        finally:
            self.keeping = False

    def _keep(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        if self.keeping:
            self.states.append(hidden_of(output))


def part(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch, as a batch of one stream."""
    return replace(
        batch,
        input_ids=batch.input_ids[rows],
        known_ids=None,
        attention_mask=batch.attention_mask[rows],
        position_ids=batch.position_ids[rows],
        source_lengths_SB=batch.source_lengths_SB[:0],
    )
