"""The adapted linear: LoRA, and LoRA that lets the source into its bottleneck.

                        +--------------+
    target t ---------->|  W (frozen)  |----------------------------+
        |               +--------------+                            v
        |     +-----+  T                                            +--> y
        +---->|     |-----> φ(S, T) --> B --> × scaling ------------+
    source s->|  A  |----->
              +-----+  S      y = W·t + scaling·B·φ(A·s, A·t)     (paper, section 1.1)

Only the target goes through W. A and B are shared by both; with source_down=own the source goes through an A of its
own. Where a target position has no partner the bottleneck is T itself, as plain LoRA's, and so it is in a layer that
fuses nothing. Dropout, when set, is drawn for each stream on its own.

PEFT makes, names and saves the layers; their forward is ours, and what it does follows from the pass under way
(`flare_ds.adapters.passes`). What a fused layer trains besides A and B (the source's own A, the gate, cross-attention's
maps, the weights of several sources) is registered in it as `lora_fusion`, beside PEFT's own `lora_A` and `lora_B`.

Legend: S sources, B rows, L columns, C >= L target columns so far, M source columns, D width of the layer's input,
O of its output, R of the bottleneck.
"""

from typing import NoReturn

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from flare_ds.adapters.bottleneck import Fusion
from flare_ds.adapters.passes import Pass, current
from flare_ds.exceptions import CheckpointError

ADAPTER = "default"
"""The name PEFT knows the adapter by."""


class AdaptedLinear:
    """Stands in for the forward of one of PEFT's LoRA layers.

    Args:
        layer: it.
        fusion: what it trains besides A and B; None: it is never fused.
    """

    def __init__(self, layer: LoraLayer, fusion: Fusion | None) -> None:
        self.layer, self.fusion = layer, fusion
        if fusion is not None:
            layer.lora_fusion = nn.ModuleDict({ADAPTER: fusion})  # type: ignore[attr-defined]
            layer.merge = _refuse_merge  # type: ignore[method-assign]

    def __call__(self, x: Tensor) -> Tensor:
        """[B, L, D], or [B·L, D], in; the same leading shape [..., O] out, in the base's precision."""
        layer, this = self.layer, current()
        result = layer.base_layer(x)
        if this.adapted:
            up, scaling = layer.lora_B[ADAPTER], layer.scaling[ADAPTER]
            return (result + up(self._bottleneck(x, this)).view_as(result) * scaling).to(result.dtype)
        if this.inputs is not None and self.fusion is not None:
            this.inputs[layer] = x
        return result

    def _bottleneck(self, x: Tensor, this: Pass) -> Tensor:
        """φ(S, T) where the pass has something to fuse here, else T."""
        layer = self.layer
        down, up, dropout = (each[ADAPTER] for each in (layer.lora_A, layer.lora_B, layer.lora_dropout))
        bottleneck_BLR = down(dropout(x.to(down.weight.dtype)))  # type: ignore[arg-type]
        source_XMD, alignment = this.source_XMD.get(layer), this.alignment
        if self.fusion is None or source_XMD is None or alignment is None:
            return bottleneck_BLR
        target_BCR = self._with_past(bottleneck_BLR.reshape(*alignment.partner_BL.shape, -1), this)
        source_down = self.fusion.source_down or down
        source_XMR = source_down(dropout(source_XMD.to(bottleneck_BLR.dtype)))
        source_SBMR = source_XMR.unflatten(0, (alignment.sources, -1))
        fused_BLR = self.fusion(source_SBMR, target_BCR, alignment)
        if this.energy is not None:
            without_BLR = self.fusion(torch.zeros_like(source_SBMR), target_BCR, alignment)
            this.energy[layer] += _energy(up(fused_BLR), up(without_BLR), alignment.partner_BL).to(this.energy[layer])
        return fused_BLR

    def _with_past(self, target_BLR: Tensor, this: Pass) -> Tensor:
        """T of all positions so far [B, C, R]; cross-attention asks the earlier ones."""
        if this.past_BCR is None:
            return target_BLR
        past_BCR = this.past_BCR.get(self.layer)
        this.past_BCR[self.layer] = target_BLR if past_BCR is None else torch.cat([past_BCR, target_BLR], 1)
        return this.past_BCR[self.layer]


def _energy(with_BLO: Tensor, without_BLO: Tensor, partner_BL: Tensor) -> Tensor:
    parts = [(with_BLO - without_BLO)[partner_BL], with_BLO[partner_BL]]
    return torch.stack([part.detach().float().square().sum() for part in parts])


def _refuse_merge(*_: object, **__: object) -> NoReturn:
    raise merge_refused()


def merge_refused() -> CheckpointError:
    """Why a fusion adapter stays an adapter."""
    return CheckpointError(
        "a fusion adapter cannot be merged: its output depends on the source text as well as on the target's",
        fix="keep it as an adapter (evaluate RUN, predict RUN); only a task adapter (method=lora) merges",
    )
