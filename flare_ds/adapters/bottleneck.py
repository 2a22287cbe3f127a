"""The fused bottleneck: what a fused layer holds besides A and B, and what it makes of source and target.

Legend: S sources, B rows, L columns, C >= L target columns so far, M source columns, D width of the layer's input,
R of the bottleneck.
"""

import torch
from torch import Tensor, nn

from flare_ds.adapters.alignment import Alignment
from flare_ds.adapters.fusion import FUSIONS, SCALE
from flare_ds.config import AdapterConfig


class Fusion(nn.Module):
    """What a fused layer holds besides A and B.

    Args:
        adapter: its settings.
        sources: how many sources meet in the bottleneck.
        width: D.

    Attributes:
        source_down: the source's own A, which begins as PEFT begins A; None: it goes through the target's.
        function: φ.
        source_scores_S: SCALE times them, their softmax weighs the sources; None: they weigh the same.
    """

    def __init__(self, adapter: AdapterConfig, sources: int, width: int) -> None:
        super().__init__()
        own = adapter.source_down == "own"
        self.source_down = nn.Linear(width, adapter.r, bias=False, dtype=torch.float32) if own else None
        self.function = FUSIONS.get(adapter.fusion)(adapter.r, adapter.fusion_heads)
        self.sources = sources
        learned = adapter.source_weights == "learned" and sources > 1
        self.source_scores_S = nn.Parameter(torch.zeros(sources, dtype=torch.float32)) if learned else None

    @property
    def a_RD(self) -> Tensor | None:
        """The source's own A."""
        return None if self.source_down is None else self.source_down.weight

    def fuse(self, source_SBMR: Tensor, target_BCR: Tensor, alignment: Alignment) -> Tensor:
        """The fused bottleneck [B, L, R] of the last L target positions; T itself where there is no partner."""
        scores_S = source_SBMR.new_zeros(self.sources) if self.source_scores_S is None else self.source_scores_S
        source_BLR = alignment.combine(source_SBMR, (SCALE * scores_S).softmax(0))
        fused_BLR = self.function.forward(source_BLR, target_BCR, alignment.real_BC)
        return torch.where(alignment.partner_BL[..., None], fused_BLR, target_BCR[:, -source_BLR.shape[1] :])
