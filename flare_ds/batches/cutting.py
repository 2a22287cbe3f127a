"""Cutting a line of rows, longest first, into pieces that each fit.

A piece of k rows costs k times its longest row: that is what its rows take once they are padded to one length.

    9 9 7 | 5 5 5 5 | 2 2      pieces of at most 4 rows and 27 tokens; they take 27, 20 and 4
"""

from collections.abc import Sequence


def cut(lengths: Sequence[int], *, tokens: int | None, rows: int | None) -> list[tuple[int, int]]:
    """Cut greedily: the fewest pieces of consecutive rows that fit.

    Args:
        lengths: tokens of each row, descending.
        tokens: most padded tokens in a piece (None: any number); a row that is longer makes a piece of its own.
        rows: most rows in a piece (None: any number).

    Returns:
        Start and end of each piece.
    """
    pieces, start = [], 0
    while start < len(lengths):
        room = len(lengths) - start
        if rows is not None:
            room = min(room, rows)
        if tokens is not None:
            room = min(room, max(1, tokens // max(1, lengths[start])))
        pieces.append((start, start + room))
        start += room
    return pieces


def cut_evenly(lengths: Sequence[int], pieces: int, *, tokens: int | None, rows: int) -> list[tuple[int, int]]:
    """Cut into at most so many pieces (`cut` makes no more) whose largest, in padded tokens, is as small as it can be.

    What else is given, and what is returned, is as for `cut`.
    """
    if not lengths:
        return []
    longest = max(1, lengths[0])
    high = longest * rows if tokens is None else min(tokens, longest * rows)
    low = min(longest, high)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(lengths, tokens=middle, rows=rows)) <= pieces else (middle + 1, high)
    return cut(lengths, tokens=low, rows=rows)
