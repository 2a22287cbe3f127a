"""Alignment: which source position meets which target position.

Prompts are left-padded, so those of one stream end in one column; answers follow.

    source   . . s0 s1 s2 s3 |            right    t0-s1 t1-s2 t2-s3     the ends meet
    target   . . . t0 t1 t2  | a0 a1      left     t0-s0 t1-s1 t2-s2     the starts meet
                                          stretch  t0-s0 t1-s2 t2-s3     first meets first, last meets last

With span=prompt answers meet nothing. With span=full answer token k of the target meets answer token k of the source,
as long as the source has one.

A target position has *no partner* where it is padding, or meets no source position; it then keeps the plain
bottleneck T. Source padding is never a partner, so what a pad token holds cannot reach the target.

Legend: S sources, B rows, L target columns, C >= L target columns so far, M source columns, P prompt columns, R width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Alignment:
    """For every target column, the column it meets in each source.

    Attributes:
        index_SBL: source column, any valid one where there is no partner.
        partner_SBL: whether there is a partner.
        real_BC: which target columns so far are not padding.
    """

    index_SBL: Tensor
    partner_SBL: Tensor
    real_BC: Tensor

    @property
    def sources(self) -> int:
        """S."""
        return self.index_SBL.shape[0]

    @property
    def partner_BL(self) -> Tensor:
        """Whether any source has a partner."""
        return self.partner_SBL.any(0)

    def without_unmet(self, source_XMD: Tensor) -> Tensor:
        """Source states [X, M, D], X = S·B, with zeros in every column that no target position meets.

        Padding is among those columns, and attention may have left anything there, even NaN. It must be gone before
        the down-projection: behind it a mask helps the forward alone, as a gradient of 0 times NaN is NaN.
        """
        shape_SBM = (*self.index_SBL.shape[:2], source_XMD.shape[1])
        met_SBM = torch.zeros(shape_SBM, dtype=torch.float32, device=source_XMD.device)
        met_SBM.scatter_add_(2, self.index_SBL, self.partner_SBL.float())
        return source_XMD.masked_fill((met_SBM.flatten(0, 1) == 0)[..., None], 0.0)

    def combine(self, source_SBMR: Tensor, weights_S: Tensor) -> Tensor:
        """Bring the sources to the target's columns, as one: [S, B, M, R] in, [B, L, R] out.

        Each position is the weighted mean over the sources that have a partner there.

        Args:
            source_SBMR: of each source column.
            weights_S: positive; only their proportions count.
        """
        index_SBLR = self.index_SBL.unsqueeze(-1).expand(-1, -1, -1, source_SBMR.shape[-1])
        gathered_SBLR = source_SBMR.gather(2, index_SBLR).masked_fill(~self.partner_SBL[..., None], 0.0)
        if self.sources == 1:
            return gathered_SBLR[0]
        weights_SBL = weights_S[:, None, None] * self.partner_SBL
        shares_SBL = weights_SBL / weights_SBL.sum(0).clamp(min=torch.finfo(weights_SBL.dtype).tiny)
        return (shares_SBL[..., None] * gathered_SBLR).sum(0)


def align_streams(
    source_lengths_SB: Tensor,
    target_lengths_B: Tensor,
    *,
    prompt_columns: int,
    real_BL: Tensor,
    mode: str,
    source_columns: int | None = None,
    source_answers_SB: Tensor | None = None,
) -> Alignment:
    """Align left-padded prompts and, if asked, the answers behind them.

    Args:
        source_lengths_SB: prompt tokens of each source row (0: the row has no source).
        target_lengths_B: prompt tokens of each target row.
        prompt_columns: P, the column where all target prompts end.
        real_BL: which target columns are not padding.
        mode: right, left or stretch.
        source_columns: the column where all source prompts end; None: P.
        source_answers_SB: span=full: answer tokens of each source row; None: answers meet nothing.
    """
    source_n, target_n = source_lengths_SB[:, :, None], target_lengths_B[None, :, None]
    columns = torch.arange(real_BL.shape[1], device=real_BL.device)
    place = columns - (prompt_columns - target_n)
    match mode:
        case "right":
            meets = place + source_n - target_n
        case "left":
            meets = place
        case "stretch":
            steps = (target_n - 1).clamp(min=1)
            nearest = torch.div(2 * place * (source_n - 1) + steps, 2 * steps, rounding_mode="floor")
            meets = torch.where(target_n > 1, nearest, source_n - 1)
        case _:
            raise AssertionError(f"unknown alignment {mode!r}")
    partner = (place >= 0) & (place < target_n) & (meets >= 0) & (meets < source_n)
    end = prompt_columns if source_columns is None else source_columns
    index = (end - source_n + meets).clamp(0, end - 1)
    if source_answers_SB is not None:
        answer = columns - prompt_columns
        partner = partner | ((answer >= 0) & (answer < source_answers_SB[..., None]))
        index = torch.where(answer >= 0, end + answer, index)
    return Alignment(index_SBL=index, partner_SBL=partner & real_BL, real_BC=real_BL)
