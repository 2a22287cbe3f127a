"""The source's share as one image: a row for each fused module, from the first layer down, a column a validation.

Dark is nothing, bright is all of the update. One image says in which layers the source is read, and since when.

A run of many validations draws no more for it: of more than 200 every second one has a column, of more than 400 every
third, and so on, always the last; and the image is drawn anew when they have grown by a tenth (`is_due`).

Legend: M modules, V validations, H height, W width, C colours.
"""

from collections.abc import Sequence

import numpy as np

_DARK_C, _MIDDLE_C, _BRIGHT_C = np.array([[13, 8, 80], [190, 55, 100], [250, 240, 120]], dtype=np.float64)
_CELL_H, _CELL_W = 8, 24
"""Pixels."""
_MOST_V = 200
"""Columns."""


def is_due(validations: int, *, drawn: int) -> bool:
    """Whether the image, last `drawn` at so many validations, is due: at each of the first, later at growing steps."""
    return 10 * validations >= 11 * drawn


def share_picture(shares_VM: Sequence[Sequence[float]]) -> np.ndarray:
    """Draw shares between 0 and 1; larger ones, and those that are no number, are drawn as 1 and 0.

    Args:
        shares_VM: of each module at each validation so far.

    Returns:
        Bytes [H, W, 3]; W is at most 4800.
    """
    every = -(-len(shares_VM) // _MOST_V)
    shown_VM = np.array(shares_VM[(len(shares_VM) - 1) % every :: every], dtype=np.float64)
    shares_MV1 = np.nan_to_num(np.clip(shown_VM.T, 0, 1))[..., None]
    low = _DARK_C + (_MIDDLE_C - _DARK_C) * np.minimum(2 * shares_MV1, 1)
    image_MVC = low + (_BRIGHT_C - _MIDDLE_C) * np.maximum(2 * shares_MV1 - 1, 0)
    return image_MVC.round().astype(np.uint8).repeat(_CELL_H, 0).repeat(_CELL_W, 1)
