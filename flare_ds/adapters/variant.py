"""The fused layer: a PEFT LoRA variant that lets the source into the bottleneck.

                        +--------------+
    target t ---------->|  W (frozen)  |----------------------------+
        |               +--------------+                            v
        |     +-----+  T                                            +--> y
        +---->|     |-----> φ(S, T) --> B --> × scaling ------------+
    source s->|  A  |----->
              +-----+  S      y = W·t + scaling·B·φ(A·s, A·t)     (paper, section 1.1)

Only the target goes through W. A and B are shared by both; with source_down=own the source goes through an A of its
own. Where a target position has no partner the bottleneck is T itself, as plain LoRA's. Dropout, when set, is drawn
for each stream on its own.
PEFT hands the whole of the adapter's forward to a variant, so dropout and scaling are applied here; it casts the
target to the adapter's dtype before and the sum back to the base's after.

What a fused layer trains besides A and B (the source's own A, the gate, cross-attention's maps, the weights of several
sources) is registered in it as `lora_fusion`, beside PEFT's own `lora_A` and `lora_B`.

Legend: S sources, B rows, L columns, C >= L target columns so far, M source columns, D width of the layer's input,
O of its output, R of the bottleneck.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import LoraVariant
from torch import Tensor, nn

from flare_ds.adapters.alignment import Alignment
from flare_ds.adapters.fusion import FUSIONS
from flare_ds.config import AdapterConfig
from flare_ds.exceptions import CheckpointError


class Fusion(nn.Module):
    """What a fused layer holds besides A and B.

    Args:
        adapter: its settings.
        sources: how many sources meet in the bottleneck.
        width: D.

    Attributes:
        source_down: the source's own A, which begins as PEFT begins A; None: it goes through the target's.
    """

    def __init__(self, adapter: AdapterConfig, sources: int, width: int) -> None:
        super().__init__()
        own = adapter.source_down == "own"
        self.source_down = nn.Linear(width, adapter.r, bias=False) if own else None
        self.function = FUSIONS.get(adapter.fusion)(adapter.r, adapter.fusion_heads)
        self.sources = sources
        learned = adapter.source_weights == "learned" and sources > 1
        self.source_logits_S = nn.Parameter(torch.zeros(sources)) if learned else None

    def forward(self, source_SBMR: Tensor, target_BCR: Tensor, alignment: Alignment) -> Tensor:
        """The fused bottleneck [B, L, R] of the last L target positions; T itself where there is no partner."""
        logits_S = source_SBMR.new_zeros(self.sources) if self.source_logits_S is None else self.source_logits_S
        source_BLR = alignment.combine(source_SBMR, logits_S.softmax(0))
        fused_BLR = self.function(source_BLR, target_BCR, alignment.real_BC)
        return torch.where(alignment.partner_BL[..., None], fused_BLR, target_BCR[:, -source_BLR.shape[1] :])


@dataclass(frozen=True)
class Given:
    """What the next forward of a fused layer fuses.

    Attributes:
        source_XMD: state of every source row, X = S·B, all rows of one source before those of the next.
        alignment: how its positions meet the target's.
    """

    source_XMD: Tensor
    alignment: Alignment


class FusionVariant(LoraVariant):
    """LoRA whose bottleneck fuses the source state it is given.

    Attributes:
        given: what the next forward fuses; None: plain LoRA.
        past_BCR: when decoding, T of the positions so far; None otherwise or at the start.
        decoding: whether T is kept for the next forward.
        energy: while measuring, sums over positions with a partner of |B·(φ(S,T) - φ(0,T))|² and |B·φ(S,T)|².
    """

    def __init__(self) -> None:
        self.given: Given | None = None
        self.past_BCR: Tensor | None = None
        self.decoding = False
        self.energy: Tensor | None = None

    def supports_lora_conversion(self) -> bool:
        """A fused layer depends on a second input, so no LoRA equals it."""
        return False

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        """Add the fused low-rank update to the frozen layer's output.

        Args:
            module: the LoRA layer.
            active_adapter: the adapter's name in it.
            x: the target's input [B, L, D], or [B·L, D], in the adapter's dtype.
            result: W·x, of the same leading shape.
        """
        down, up = module.lora_A[active_adapter], module.lora_B[active_adapter]
        dropout = module.lora_dropout[active_adapter]
        bottleneck_BLR = down(dropout(x))
        if self.given is not None:
            bottleneck_BLR = bottleneck_BLR.reshape(*self.given.alignment.partner_BL.shape, -1)
        target_BCR = self._with_past(bottleneck_BLR)
        if self.given is not None:
            fusion, alignment = module.lora_fusion[active_adapter], self.given.alignment  # type: ignore[attr-defined]
            source_down = fusion.source_down or down
            source_XMR = source_down(dropout(self.given.source_XMD.to(x.dtype)))
            source_SBMR = source_XMR.unflatten(0, (alignment.sources, -1))
            bottleneck_BLR = fusion(source_SBMR, target_BCR, alignment)
            if self.energy is not None:
                without_BLR = fusion(torch.zeros_like(source_SBMR), target_BCR, alignment)
                self._measure(up(bottleneck_BLR), up(without_BLR), alignment.partner_BL)
        return result + (up(bottleneck_BLR) * module.scaling[active_adapter]).view_as(result)

    def _with_past(self, bottleneck_BLR: Tensor) -> Tensor:
        """T of all positions so far [B, C, R]; cross-attention asks the earlier ones."""
        if not self.decoding:
            return bottleneck_BLR
        past = bottleneck_BLR if self.past_BCR is None else torch.cat([self.past_BCR, bottleneck_BLR], 1)
        self.past_BCR = past
        return past

    def _measure(self, with_BLO: Tensor, without_BLO: Tensor, partner_BL: Tensor) -> None:
        assert self.energy is not None
        parts = [(with_BLO - without_BLO)[partner_BL], with_BLO[partner_BL]]
        self.energy += torch.stack([part.detach().float().square().sum() for part in parts]).to(self.energy)

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
