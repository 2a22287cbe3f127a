"""Texts in columns as wide as a terminal: wide characters count two cells, right-to-left text stays in its column.

A terminal that knows right-to-left writing reorders a whole line. So each piece of such text travels in an isolate
(FSI ... PDI, of no width), which the rest of the line, and the next column, are left out of.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from rich.console import Console
from rich.text import Text

SEPARATOR = " │ "
_ISOLATE, _END_ISOLATE = "\u2068", "\u2069"
_NARROWEST = 8


def side_by_side(console: Console, texts: Sequence[Text]) -> Iterator[Text]:
    """Wrap each text into a column, and join the columns line by line.

    Lines are no wider than the console, unless the columns would be narrower than a few cells.
    """
    width = max((console.width - len(SEPARATOR) * (len(texts) - 1)) // len(texts), _NARROWEST)
    columns = [text.wrap(console, width) for text in texts]
    for pieces in zip_longest(*columns, fillvalue=Text()):
        padded = [isolated(piece) + " " * (width - piece.cell_len) for piece in pieces[:-1]]
        yield Text(SEPARATOR, style="dim").join([*padded, isolated(pieces[-1])])


def isolated(text: Text) -> Text:
    """The text, in an isolate if it holds anything written from right to left or that directs writing."""
    if not any(unicodedata.bidirectional(character) in _REORDERING for character in text.plain):
        return text
    return Text.assemble(_ISOLATE, text, _END_ISOLATE)


def visible(text: str) -> str:
    """The text with its control characters shown as pictures, so that none acts on the terminal; lines still end."""
    return "".join(_PICTURES.get(character, character) for character in text)


_REORDERING = {"R", "AL", "AN", "LRE", "LRO", "RLE", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_PICTURES = {chr(code): chr(0x2400 + code) for code in range(0x20)} | {"\x7f": "␡", "\n": "␊\n"}
_PICTURES |= {chr(code): f"<U+{code:04X}>" for code in (*range(0x80, 0xA0), 0x2028, 0x2029)}
