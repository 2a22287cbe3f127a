"""Columns of text: never wider than the terminal, nothing lost, right-to-left text kept to its column."""

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from flare_ds.cli.side_by_side import SEPARATOR, isolated, side_by_side, visible

ISOLATES = {"\u2068", "\u2069"}
ALPHABET = "ab c日本語שלוםمرحبا\n🙂e\u0301"


def cells(text: str) -> int:
    """Terminal cells by Unicode's own tables: two for a wide character, none for one that combines or directs."""
    widths = {"W": 2, "F": 2}
    return sum(
        0
        if unicodedata.combining(character) or unicodedata.category(character) == "Cf"
        else widths.get(unicodedata.east_asian_width(character), 1)
        for character in text
    )


def columns(texts: list[str], width: int) -> list[list[str]]:
    """The lines of a console of that width, each cut at the separators."""
    console = Console(file=io.StringIO(), width=width)
    lines = [line.plain for line in side_by_side(console, [Text(text) for text in texts])]
    assert all(cells(line) <= width for line in lines), lines
    return [line.split(SEPARATOR) for line in lines]


@given(st.lists(st.text(ALPHABET, max_size=80), min_size=1, max_size=4), st.integers(50, 100))
def test_columns_fit_and_lose_nothing(texts: list[str], width: int) -> None:
    lines = columns(texts, width)
    for number, text in enumerate(texts):
        said = "".join(line[number] for line in lines)
        assert "".join(c for c in said if c not in ISOLATES and not c.isspace()) == "".join(text.split())


@given(st.lists(st.text(ALPHABET, max_size=80), min_size=2, max_size=4), st.integers(50, 100))
def test_separators_stand_below_each_other(texts: list[str], width: int) -> None:
    starts = {tuple(cells(piece) for piece in line[:-1]) for line in columns(texts, width)}
    assert len(starts) == 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("abc", "abc"), ("日本", "日本"), ("אב 12", "\u2068אב 12\u2069"), ("a\u202eb", "\u2068a\u202eb\u2069")],
)
def test_what_is_written_from_right_to_left_is_isolated(text: str, wanted: str) -> None:
    assert isolated(Text(text)).plain == wanted


def test_control_characters_do_not_reach_the_terminal() -> None:
    text = "".join(map(chr, range(0xA0))) + "\u2028"
    shown = visible(text)
    assert [c for c in shown if unicodedata.category(c) in ("Cc", "Zl", "Zp")] == ["\n"]
    assert visible("a\x1b[31m\tb") == "a␛[31m␉b"
    assert visible("łąka 日本 שלום") == "łąka 日本 שלום"
