r"""Cutting a text into the pieces a translator reads, and putting their translations in their places.

    "Good morning.  It is 9:00.\nCome in!"
     ├───────────┤  ├─────────┤  ├──────┤      segments; what stands between them stays as it is

Translators are trained on sentences and lose what goes on beyond a few hundred tokens, so a long text is never given
to one as a whole.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from flare_ds.texts import Cuts, clusters

LONGEST = 400
"""Characters of a segment: far below what any of the translators reads at once, and above almost every sentence."""
_END = re.compile(r"\n|[。！？؟।॥]+[”’」』）]*\s*|(?<![.!?…])[.!?…]++[\"'”’»)\]]*+[^\S\n]++(?=\S)")
_TOKEN = re.compile(r"[^\s.(\[\"'“‘«-]*$")
"""What stands before a full stop, up to the last space, full stop or opening mark."""
_ABBREVIATIONS = frozenset(["mrs", "prof", "gen", "sen", "rev", "sra", "dra", "srta", "tgl", "vol", "fig", "etc"])
_NEARBY = 32
"""Characters in which a token is looked for."""

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
    """Put a translation in the place of each span that `segment` found in a text.

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
        mark = match.group().rstrip()
        if mark[:1] not in ".!?…" or not mark or not _goes_on(text, match.start(), match.end(), only_stop=mark == "."):
            yield match.end()


def _goes_on(text: str, start: int, end: int, *, only_stop: bool) -> bool:
    """Whether a sentence goes on behind a mark: with a small letter, in any script; or the mark ends something short.

    Cutting too seldom leaves two sentences together, which translators can read; a torn unit or date they cannot.
    """
    following = next((character for character in text[end : end + _NEARBY] if character.isalnum()), "")
    if following.islower():
        return True
    found = _TOKEN.search(text[max(0, start - _NEARBY) : start])
    token = found.group() if found else ""
    if not only_stop or not token:
        return False
    if token.isdecimal():
        return len(token) <= 2 or text[end].isdecimal()  # a day or a month; a year before them
    # An initial, a unit. Where letters have no case, whole words can have two of them: `ఉంది`, `있다`.
    has_case = token.lower() != token.upper()
    return len(clusters(token)) <= 1 + has_case or token.lower() in _ABBREVIATIONS


def _may_cut(place: int, whole: Sequence[Span]) -> bool:
    return not any(start < place < end for start, end in whole)


def _short_pieces(text: str, start: int, end: int, whole: Sequence[Span]) -> Iterator[Span]:
    """Cut a sentence that is very long at its spaces, or between any two letters where it has none."""
    while end - start > LONGEST:
        cut = text.rfind(" ", start + 1, start + LONGEST)
        cut = cut if cut > 0 else start + (Cuts(text[start : start + LONGEST + _NEARBY]).letter(LONGEST) or LONGEST)
        for first, last in sorted(whole):
            if first < cut < last:
                cut = first if first > start else last
        yield start, min(cut, end)
        start = min(cut, end)
    yield start, end


def _trim(text: str, start: int, end: int) -> Span:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
