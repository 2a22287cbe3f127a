r"""Cutting a text into the pieces a translator reads, and putting their translations in their places.

    "Good morning.  It is 9:00.\nCome in!"
     ├───────────┤  ├─────────┤  ├──────┤      segments; what stands between them stays as it is

Translators are trained on sentences and lose what goes on beyond a few hundred tokens, so a long text is never given
to one as a whole.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

LONGEST = 400
"""Characters of a segment: far below what any of the translators reads at once, and above almost every sentence."""
_END = re.compile(r"\n|[。！？؟।॥]+[”’」』）]*\s*|[.!?…]+[\"'”’»)\]]*\s+(?=[^\sa-z])")
_ABBREVIATION = re.compile(r"(?:\b[A-Z]|\b(?:Mr|Mrs|Ms|Dr|St|Prof|No|vs|Gen|Sen|Rev|Jr|Sr))\.$")

Span = tuple[int, int]
"""Where a piece of a text begins and ends, in characters."""


def segment(text: str, whole: Sequence[Span] = ()) -> list[Span]:
    """Find the pieces to translate: sentences, without the white space around them, none of them very long.

    Args:
        text: of one field.
        whole: spans that no cut may fall into, such as an answer.

    Returns:
        The spans of the pieces, in order. A piece without a letter is none: digits and marks are the same everywhere.
    """
    cuts = [0, *(end for end in _sentence_ends(text) if _may_cut(end, whole)), len(text)]
    spans: list[Span] = []
    for start, end in pairwise(cuts):
        spans += (_trim(text, *piece) for piece in _short_pieces(text, start, end, whole))
    return [(start, end) for start, end in spans if any(character.isalpha() for character in text[start:end])]


def replace(text: str, spans: Sequence[Span], translations: Sequence[str]) -> tuple[str, list[int]]:
    """Put a translation in the place of each span.

    Args:
        text: that was segmented.
        spans: of `segment`.
        translations: of each span.

    Returns:
        The translated text, and where each translation starts in it.
    """
    out, starts, done = "", [], 0
    for (start, end), translation in zip(spans, translations, strict=True):
        out += text[done:start]
        if start == done and out and out[-1].isascii() and not out[-1].isspace():
            out += " "  # the original needs no space here, as Chinese does not; this language does
        starts.append(len(out))
        out += translation
        done = end
    return out + text[done:], starts


def _sentence_ends(text: str) -> Iterator[int]:
    for match in _END.finditer(text):
        if not _ABBREVIATION.search(text[max(0, match.start() - 5) : match.start() + 1]):
            yield match.end()


def _may_cut(place: int, whole: Sequence[Span]) -> bool:
    return not any(start < place < end for start, end in whole)


def _short_pieces(text: str, start: int, end: int, whole: Sequence[Span]) -> Iterator[Span]:
    """Cut a sentence that is very long at its spaces, or anywhere where it has none."""
    while end - start > LONGEST:
        cut = text.rfind(" ", start + 1, start + LONGEST)
        cut = cut if cut > 0 else start + LONGEST
        for first, last in sorted(whole):
            if first < cut < last:
                cut = first if first > start else last
        yield start, min(cut, end)
        start = min(cut, end)
    yield start, end


def _trim(text: str, start: int, end: int) -> Span:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
