"""Predictions that scorers like to disagree about: a thousand strings, the same every time."""

import random
from collections.abc import Sequence

ARTICLES = ["a", "an", "the", "The", "AN", "THE", "der", "la", "ال"]
LATIN = [
    "cat",
    "Cats",
    "Tower",
    "U.S.A",
    "naïve",
    "STRASSE",
    "Straße",
    "ﬁle",
    "İstanbul",
    "ıslak",
    "ΟΔΟΣ",
    "ß",
    "theatre",
]
SCRIPTS = [
    "กรุงเทพมหานคร",  # Thai, without spaces
    "ประเทศไทย",
    "القاهرة",  # Arabic, with its article
    "قاهرة",
    "مُحَمَّد",  # with vowel marks
    "ঢাকা",  # Bengali
    "বাংলাদেশ",
    "హైదరాబాద్",  # Telugu
    "తెలుగు",
    "北京",
    "長城",
    "서울",
    "Москва",
    "Ελλάδα",
]
NUMBERS = ["1976", "1,976", "3.5", "-7", "١٩٧٦", "১৯৭১", "౨౦౧౪", "๒๕", "２０", "½", "x²", "Ⅳ", "1e3"]
MARKS = ["e\u0301", "\u00e9", "n\u0303o", "\u0e33", "\u200b", "\u200d", "\u200e", "\ufeff", "\u00ad", "\ufe0f"]
SEPARATORS = [
    " ",
    "  ",
    "\t",
    "\n",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u2028",
    "",
    "-",
    "_",
    ".",
    ", ",
    "'",
    "’",
    "—",
    "/",
]
PUNCTUATION = [
    "!",
    "?",
    '"',
    "(",
    ")",
    "[",
    "}",
    "*",
    "`",
    "$",
    "%",
    "“",
    "”",
    "«",
    "।",
    "॥",
    "،",
    "؟",
    "。",
    "、",
    "！",
    "ฯ",
    "…",
]
EMPTY = ["", " ", "\n", "the", " The a", "...", "a!", "\u200b", "an the", "_", "!?"]


def strings(count: int, words: Sequence[str] = (), *, seed: int = 0) -> list[str]:
    """So many of them; `words` occur among the pieces they are made of, whole and in other guises."""
    draw = random.Random(seed)
    pieces = [*ARTICLES, *LATIN, *SCRIPTS, *NUMBERS, *MARKS, *words]
    return [_string(draw, pieces, words) for _ in range(count)]


def disguised(draw: random.Random, text: str) -> str:
    """The same text in other case, with punctuation, spaces, an article, marks nobody sees, or a letter less."""
    return draw.choice(
        [
            text,
            text.upper(),
            text.title(),
            text.swapcase(),
            f" {text}\n",
            f"{draw.choice(PUNCTUATION)}{text}{draw.choice(PUNCTUATION)}",
            f"{draw.choice(ARTICLES)}{draw.choice(SEPARATORS)}{text}",
            f"{text}{draw.choice(MARKS)}",
            f"{text}{draw.choice(SEPARATORS)}{text}",
            text.replace(" ", draw.choice(SEPARATORS)),
            text[:-1],
        ]
    )


def _string(draw: random.Random, pieces: Sequence[str], words: Sequence[str]) -> str:
    if draw.random() < 0.05:
        return draw.choice(EMPTY)
    if words and draw.random() < 0.6:
        return disguised(draw, draw.choice(words))
    parts = draw.choices(pieces, k=draw.randint(1, 5))
    text = "".join(part + draw.choice([*SEPARATORS, *PUNCTUATION]) for part in parts)
    return disguised(draw, text) if draw.random() < 0.3 else text
