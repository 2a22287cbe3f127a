"""The fused layer: a PEFT LoRA variant that lets the source into the bottleneck.

                        +--------------+
    target t ---------->|  W (frozen)  |----------------------------+
        |               +--------------+                            v
        |     +-----+  T                                            +--> y
        +---->|     |-----> φ(S, T) --> B --> × α/r ----------------+
    source s->|  A  |----->
              +-----+  S      y = W·t + (α/r)·B·φ(A·s, A·t)     (paper, section 1.1)

Only the target goes through W; A and B are shared by both. Where a target position has no partner the bottleneck
is T itself, as plain LoRA's. Dropout, when set, is drawn for each stream on its own.
PEFT hands the whole of the adapter's forward to a variant, so dropout and scaling are applied here; it casts the
target to the adapter's dtype before and the sum back to the base's after.

Legend: B rows, L columns, D width of the layer's input, O of its output, R of the bottleneck.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import LoraVariant
from torch import Tensor

from flare_ds.adapters.alignment import Alignment
from flare_ds.adapters.fusion import FusionFunction
from flare_ds.exceptions import CheckpointError


class FusionVariant(LoraVariant):
    """LoRA whose bottleneck fuses the source state it was last given.

    Attributes:
        source_BLD: what the next forward fuses; None: plain LoRA.
        alignment: how its positions meet the target's.
    """

    def __init__(self, fusion: FusionFunction) -> None:
        self.fusion = fusion
        self.source_BLD: Tensor | None = None
        self.alignment: Alignment | None = None

    def supports_lora_conversion(self) -> bool:
        """A fused layer depends on a second input, so no LoRA equals it."""
        return False

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        """Add the fused low-rank update to the frozen layer's output.

        Args:
            module: the LoRA layer.
            active_adapter: the adapter's name in it.
            x: the target's input [B, L, D], in the adapter's dtype.
            result: W·x [B, L, O].
        """
        down, up = module.lora_A[active_adapter], module.lora_B[active_adapter]
        dropout = module.lora_dropout[active_adapter]
        bottleneck_BLR = down(dropout(x))
        if self.source_BLD is not None:
            assert self.alignment is not None
            source_BLR = self.alignment.gather(down(dropout(self.source_BLD.to(x.dtype))))
            fused_BLR = self.fusion(source_BLR, bottleneck_BLR)
            bottleneck_BLR = torch.where(self.alignment.partner_BL[..., None], fused_BLR, bottleneck_BLR)
        return result + up(bottleneck_BLR) * module.scaling[active_adapter]

    def merge_safe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:  # type: ignore[override]
        """Refuse: see `merge_refused`."""
        raise merge_refused()

    def merge_unsafe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:  # type: ignore[override]
        """Refuse: see `merge_refused`."""
        raise merge_refused()

    def unmerge(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:  # type: ignore[override]
        """Refuse: see `merge_refused`."""
        raise merge_refused()


def merge_refused() -> CheckpointError:
    """Why a fusion adapter stays an adapter."""
    return CheckpointError(
        "a fusion adapter cannot be merged: its output depends on the source text as well as on the target's",
        fix="keep it as an adapter (evaluate RUN, predict RUN); only a task adapter (method=lora) merges",
    )
