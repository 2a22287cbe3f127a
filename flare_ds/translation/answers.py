"""Finding an answer again in the translation of the text it stands in.

    He lives in Soho Square.        ──mark──>    He lives in "Soho Square".
                                                         │ translate
    Ele mora na Praça de Soho.     <──unmark──   Ele mora na "Praça de Soho".

The marks travel through the translation; taking them out again moves the answer by those removed before it. Measured
in docs/translation.md: the straight quote is kept most often. It is used wherever the sentence has no quotes of its
own; otherwise the next mark is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import regex

from flare_ds.texts import find_equivalent
from flare_ds.translation.segments import Span


@dataclass(frozen=True)
class Mark:
    """A pair of marks that is written around an answer, and what a translator may write for each of them."""

    opening: str
    closing: str
    also_opening: str = ""
    also_closing: str = ""

    def places(self, text: str) -> list[int]:
        """Where any of the marks stands in a text."""
        marks = self.opening + self.closing + self.also_opening + self.also_closing
        return [place for place, character in enumerate(text) if character in marks]


MARKS = (Mark('"', '"', "“„«»「", "”“»«」"), Mark("[", "]"), Mark("*", "*"))
"""From the one kept most often."""
_WITHOUT_SPACES = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""Scripts that put no space between words: Thai, Lao, Burmese, Khmer, Kana, Chinese."""
_WORD = regex.compile(r"\w")
"""A character of a word, vowel signs included."""


def mark(sentence: str, answer: Span) -> str | None:
    """Put marks around the answer of a sentence; None if every mark occurs in the sentence already."""
    chosen = _mark_for(sentence)
    if chosen is None:
        return None
    start, end = answer
    return f"{sentence[:start]}{chosen.opening}{sentence[start:end]}{chosen.closing}{sentence[end:]}"


def unmark(translation: str, sentence: str) -> tuple[str, Span] | None:
    """Take the marks out of the translation of what `mark` made of a sentence.

    Returns:
        The translation without marks, and where the answer stands in it; None if the marks did not survive as one
        pair with something in it.
    """
    chosen = _mark_for(sentence)
    assert chosen is not None, "the sentence was marked"
    places = chosen.places(translation)
    if len(places) != 2:
        return None
    first, last = places
    before, inside, after = translation[:first], translation[first + 1 : last], translation[last + 1 :]
    opens = translation[first] in chosen.opening + chosen.also_opening
    closes = translation[last] in chosen.closing + chosen.also_closing
    answer = inside.strip()
    if not (opens and closes and answer):
        return None
    # A space on the inner side of a mark belongs to the text around it, unless there is one already.
    before += " " if inside[0].isspace() and before and not before[-1].isspace() else ""
    after = (" " if inside[-1].isspace() and after[:1].isalnum() else "") + after
    return before + answer + after, (len(before), len(before) + len(answer))


def find(answer: str, text: str, within: Sequence[Span]) -> Span | None:
    """Find an answer in a text as whole words, whatever the case and the Unicode form of its letters.

    Returns:
        The first place in the first of some spans of the text that has it; None: there is none.
    """
    wanted = answer.strip()
    anywhere = _WITHOUT_SPACES.search(wanted) is not None
    for (start, end), any_case in product(within, (False, True)):
        for first, last in find_equivalent(wanted, text[start:end], any_case=any_case):
            span = start + first, start + last
            if anywhere or _is_whole(text, span):
                return span
    return None


def _is_whole(text: str, span: Span) -> bool:
    """Whether no word goes on beyond the ends of a span."""
    return not (_WORD.match(text[max(0, span[0] - 1) : span[0]]) or _WORD.match(text[span[1] : span[1] + 1]))


def _mark_for(sentence: str) -> Mark | None:
    return next((candidate for candidate in MARKS if not candidate.places(sentence)), None)
