"""Texts: in which form they are compared, where one stands in another, and where one may be cut.

One letter can be written in several ways: `é` is one character, or an `e` and an accent. Unicode calls them canonically
equivalent, and tokenizers turn one into the other, so they count as the same. Forms that only look alike (`ﬁ`, `½`,
wide letters) do not: NFC, not NFKC.
"""

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate

import regex

_CLUSTER = regex.compile(r"\X")
_NEAR = 40
"""Characters that are given up at most for a whole word."""


def composed(text: str) -> str:
    """The text in NFC, the form in which texts are compared."""
    return unicodedata.normalize("NFC", text)


def one_line(text: str) -> str:
    """The text with single spaces for all white space, as answers are said and compared."""
    return " ".join(text.split())


def clusters(text: str) -> list[str]:
    """What a reader calls letters: each with its accents and vowel signs, an emoji with all that it is made of."""
    return _CLUSTER.findall(text)


def find_equivalent(text: str, context: str, *, any_case: bool = False) -> Iterator[tuple[int, int]]:
    """Where a text stands in another, however the letters of either are written; no letter is torn.

    Yields:
        Its first character in the context, and one behind its last.
    """
    parts = clusters(context)
    compared = [_compared(part, any_case) for part in parts]
    # Where each letter starts, as compared and as written; the last entry is the end.
    places = dict(zip(accumulate(map(len, compared), initial=0), accumulate(map(len, parts), initial=0), strict=True))
    wanted, searched = _compared(text, any_case), "".join(compared)
    start = searched.find(wanted) if wanted else -1
    while start >= 0:
        end = start + len(wanted)
        if start in places and end in places:
            yield places[start], places[end]
        start = searched.find(wanted, start + 1)


def _compared(text: str, any_case: bool) -> str:
    """Decomposed, as letters can then be compared one after the other."""
    decomposed = unicodedata.normalize("NFD", text)
    return unicodedata.normalize("NFD", decomposed.casefold()) if any_case else decomposed


class Cuts:
    """Where a text may be cut: between words, or between letters where no word ends nearby."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._letters = list(accumulate(map(len, clusters(text)), initial=0))

    def letter(self, place: int) -> int:
        """Where the letter at a place begins."""
        return self._letters[bisect_right(self._letters, place) - 1]

    def letter_end(self, place: int) -> int:
        """Where a letter ends at a place or behind it."""
        return self._letters[bisect_left(self._letters, place)]

    def end(self, place: int, *, beyond: int) -> int:
        """The last place up to this one where a part may end: behind a word that ends beyond another place."""
        nearby = range(self.letter(place), max(place - _NEAR, beyond), -1)
        return next(filter(self._ends_a_word, nearby), self.letter(place))

    def start(self, place: int, *, before: int) -> int:
        """The first place from this one on where a part may start: at a word that starts before another place."""
        nearby = range(self.letter_end(place), min(place + _NEAR, before))
        return next(filter(self._starts_a_word, nearby), self.letter_end(place))

    def start_back(self, place: int, *, beyond: int) -> int:
        """The last place up to this one, but beyond another, where a part may start; 0: there is none."""
        nearby = range(place, max(place - _NEAR, beyond), -1)
        letter = self.letter(place)
        return next(filter(self._starts_a_word, nearby), letter if letter > beyond else 0)

    def _ends_a_word(self, place: int) -> bool:
        return not self._text[place - 1].isspace() and self._text[place : place + 1].isspace()

    def _starts_a_word(self, place: int) -> bool:
        return self._text[place - 1 : place].isspace() and not self._text[place].isspace()
