r"""Texts that say the same again and again: a known failure of neural translators.

A unit of 20 to 200 characters loops where it comes three times on end, a shorter one where it comes six times and does
not begin with a space. What holds no letter says nothing. It is what this expression finds from left to right, one
match behind another; but there every character is compared in turn for every length of a unit:

    (?s)(.{20,200}?)\1{2,}|(?=\S)(.{1,19}?)\2{5,}

Legend: C characters.
"""

import re
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

import numpy as np

_LONG = 20
_UNITS = [(length, 3) for length in range(_LONG, 201)] + [(length, 6) for length in range(1, _LONG)]
"""Characters of a unit, and how often it has to come; of those that begin at one place the first here is found."""
_Run = tuple[int, int, int]
"""From where, of which of the units, and up to where each character is that of one unit later."""


def loops(translation: str, *, of: str) -> bool:
    """Whether a translation repeats itself where the text it is of does not."""
    return _repeats(f"{translation} ") and not _repeats(f"{of} ")


def _repeats(text: str) -> bool:
    """Whether a loop says something. Loops do not overlap: what one takes is gone for the next."""
    free, runs = 0, list(_runs(text))
    heapify(runs)
    while runs:
        start, unit, end = heappop(runs)
        length, times = _UNITS[unit]
        begin = max(start, free)
        while length < _LONG and begin < end and text[begin].isspace():
            begin += 1
        if end - begin < (times - 1) * length:
            continue
        if begin == start:
            if any(map(str.isalpha, text[begin : begin + length])):
                return True
            free = begin + ((end - begin) // length + 1) * length
        heappush(runs, (max(begin, free), unit, end))
    return False


def _runs(text: str) -> Iterator[_Run]:
    """Where a unit may come often enough."""
    codes_C = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    for unit, (length, times) in enumerate(_UNITS):
        needed = (times - 1) * length
        if needed + length <= len(text):
            alike = (codes_C[length:] == codes_C[:-length]).tobytes()
            if b"\1" * needed in alike:
                for run in re.finditer(rb"\x01{%d,}" % needed, alike):
                    yield run.start(), unit, run.end()
