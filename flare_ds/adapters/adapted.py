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

PEFT makes, names and saves the layers; their forward is ours, and what it does, and with which adapter where a layer
has several, follows from the pass under way (`flare_ds.adapters.passes`). PEFT's `disable_adapter` leaves the base
alone; its other switches are refused. What a fused layer trains besides A and B (the source's own A, the gate,
cross-attention's maps, the weights of several sources) is registered in it as `lora_fusion`, beside PEFT's own `lora_A`
and `lora_B`.

Legend: S sources, B rows, L columns, C >= L target columns so far, M source columns, D width of the layer's input,
O of its output, R of the bottleneck.
"""

from typing import NoReturn

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from flare_ds.adapters.down_projection import down_projection
from flare_ds.adapters.fusion import Fusion
from flare_ds.adapters.passes import Pass, current
from flare_ds.adapters.up_projection import up_projection
from flare_ds.exceptions import CheckpointError, ConfigError


class AdaptedLinear:
    """Stands in for the forward of one of PEFT's LoRA layers.

    No module inside is called, so that under ZeRO-3 the layer's hooks run once and not for each of its parts.

    Attributes:
        fusions: what adapters that fuse here train besides A and B, by their names.
        own: the names of the adapters that we have put into the model, of which PEFT takes some for active.
    """

    def __init__(self, layer: LoraLayer) -> None:
        self.layer, self.fusions = layer, nn.ModuleDict()
        self.own: set[str] = set()

    def fuse(self, adapter: str, fusion: Fusion) -> None:
        """Have one of the layer's adapters fuse."""
        self.fusions[adapter] = fusion
        self.layer.lora_fusion = self.fusions  # type: ignore[attr-defined]
        self.layer.merge = _refuse_merge  # type: ignore[method-assign]

    def __call__(self, x: Tensor) -> Tensor:
        """[B, L, D], or [B·L, D], in; the same leading shape [..., O] out, in the base's precision."""
        layer, this = self.layer, current()
        if layer.merged_adapters or not self.own.issuperset(layer.active_adapters):
            raise self._switched()
        if this.inputs is not None and self.fusions:
            this.inputs[layer] = x
        if this.ended:
            return x.new_zeros(*x.shape[:-1], layer.out_features)  # type: ignore[arg-type]
        result: Tensor = layer.base_layer.forward(x)
        if this.adapted and this.adapter in layer.lora_A and not layer.disable_adapters:
            bottleneck = self._bottleneck(x, this).reshape(*x.shape[:-1], -1)
            return up_projection(result, bottleneck, self._b_OR(this), layer.scaling[this.adapter])
        return result

    def _switched(self) -> ConfigError:
        """What PEFT was told to do with its layers that this forward does not."""
        if merged := self.layer.merged_adapters:
            problem = f"adapter {merged[0]!r} is merged into the base's weights, and would count twice"
            return ConfigError(problem, fix="call unmerge_adapter()")
        foreign = sorted(set(self.layer.active_adapters) - self.own)
        problem = f"the active adapter {foreign[0]!r} was not made by flare_ds"
        return ConfigError(problem, fix=f"call set_adapter({min(self.own)!r})")

    def _b_OR(self, this: Pass) -> Tensor:
        return self.layer.lora_B[this.adapter].weight  # type: ignore[return-value]

    def _bottleneck(self, x: Tensor, this: Pass) -> Tensor:
        """φ(S, T) where the pass has something to fuse here, else T."""
        a_RD: Tensor = self.layer.lora_A[this.adapter].weight  # type: ignore[assignment]
        dropout = self._dropout(this)
        target = down_projection(x, a_RD, dropout)
        source_XMD, alignment = this.source_XMD.get(self.layer), this.alignment
        if this.adapter not in self.fusions or source_XMD is None or alignment is None:
            return target
        fusion: Fusion = self.fusions[this.adapter]  # type: ignore[assignment]
        target_BCR = self._with_past(target.reshape(*alignment.partner_BL.shape, -1), this)
        source_XMR = down_projection(source_XMD, a_RD if fusion.a_RD is None else fusion.a_RD, dropout)
        source_SBMR = source_XMR.unflatten(0, (alignment.sources, -1))
        fused_BLR = fusion.fuse(source_SBMR, target_BCR, alignment)
        if this.energy is not None:
            without_BLR = fusion.fuse(torch.zeros_like(source_SBMR), target_BCR, alignment)
            parts_2BLR = torch.stack([fused_BLR - without_BLR, fused_BLR])
            energy = _energy(parts_2BLR, self._b_OR(this), alignment.partner_BL)
            this.energy[self.layer] = this.energy.get(self.layer, 0) + energy
        return fused_BLR

    def _dropout(self, this: Pass) -> float:
        """The share of the inputs that is left out now; PEFT puts something else in place of no dropout."""
        dropout = self.layer.lora_dropout[this.adapter]
        return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0

    def _with_past(self, target_BLR: Tensor, this: Pass) -> Tensor:
        """T of all positions so far [B, C, R]; cross-attention asks the earlier ones."""
        if this.past_BCR is None:
            return target_BLR
        past_BCR = this.past_BCR.get(self.layer)
        this.past_BCR[self.layer] = target_BLR if past_BCR is None else torch.cat([past_BCR, target_BLR], 1)
        return this.past_BCR[self.layer]


@torch.no_grad()
def _energy(parts_2BLR: Tensor, b_OR: Tensor, partner_BL: Tensor) -> Tensor:
    """|B·v|² of two kinds of v in fp64 [2], each summed over the positions with a partner, as vᵀ(BᵀB)v."""
    met_2BLR = parts_2BLR.masked_fill(~partner_BL[..., None], 0.0)
    return (met_2BLR @ (b_OR.T @ b_OR) * met_2BLR).double().sum((1, 2, 3))


def _refuse_merge(*_: object, **__: object) -> NoReturn:
    raise merge_refused()


def merge_refused() -> CheckpointError:
    """Why a fusion adapter stays an adapter."""
    return CheckpointError(
        "a fusion adapter cannot be merged: its output depends on the source text as well as on the target's",
        fix="keep it as an adapter (evaluate RUN, predict RUN); method=lora, source_lora, input_fusion and late merge",
    )
