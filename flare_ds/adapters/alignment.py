"""Alignment: which source position meets which target position.

Both prompts are left-padded to the same P columns, so they end in the same column; answers follow in columns P..L-1.

    source   . . s0 s1 s2 s3 |            right    t0-s1 t1-s2 t2-s3     the ends meet (identity on columns)
    target   . . . t0 t1 t2  | a0 a1      left     t0-s0 t1-s1 t2-s2     the starts meet
                                          stretch  t0-s0 t1-s2 t2-s3     first meets first, last meets last

A target position has *no partner* where it is padding, an answer, or past the source's other end; it then keeps the
plain bottleneck T. Source padding is never a partner, so what a pad token holds cannot reach the target.

Legend: B rows, L columns, P prompt columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Alignment:
    """For every target column, the source column it meets.

    Attributes:
        index_BL: source column, any valid one where there is no partner.
        partner_BL: whether there is a partner.
    """

    index_BL: Tensor
    partner_BL: Tensor

    def gather(self, source_BLR: Tensor) -> Tensor:
        """Bring the source to the target's columns: [B, L, R] in, [B, L, R] out."""
        index_BLR = self.index_BL.unsqueeze(-1).expand(-1, -1, source_BLR.shape[-1])
        return source_BLR.gather(1, index_BLR)


def align_prompts(
    source_lengths_B: Tensor, target_lengths_B: Tensor, *, prompt_columns: int, columns: int, mode: str
) -> Alignment:
    """Align left-padded prompts.

    Args:
        source_lengths_B: prompt tokens of each source row (0: the row has no source).
        target_lengths_B: prompt tokens of each target row.
        prompt_columns: P, the column where all prompts end.
        columns: L >= P.
        mode: right, left or stretch.
    """
    source_n, target_n = source_lengths_B[:, None], target_lengths_B[:, None]
    place = torch.arange(columns, device=source_n.device)[None, :] - (prompt_columns - target_n)
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
    index = (prompt_columns - source_n + meets).clamp(0, columns - 1)
    return Alignment(index_BL=index, partner_BL=partner)
