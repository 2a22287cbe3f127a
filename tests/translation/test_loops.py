"""Loops: what is found is what a slow regular expression finds."""

import random
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flare_ds.translation.loops import loops

SLOW = re.compile(r"(?s)(.{20,200}?)\1{2,}|(?=\S)(.{1,20}?)\2{5,}")

FEW = st.text(alphabet="ab. \n", max_size=25)
UNITS = st.one_of(FEW, st.text(max_size=25), st.builds(lambda text, times: text * times, FEW, st.integers(1, 12)))
PIECES = st.lists(st.tuples(UNITS, st.integers(1, 8)), max_size=6)


def slow(text: str) -> bool:
    return any(any(map(str.isalpha, found.group())) for found in SLOW.finditer(f"{text} "))


@given(PIECES)
@example([("." * 60 + "a", 3)])  # the points are a loop themselves, and take a part of the larger one
@example([("......a", 6)])
@example([("......", 1), ("......a", 6), ("...", 1)])  # they take all that they can
@example([("a" + "." * 199, 3)])
@example([("a" + "." * 200, 3)])
@example([(" a" + " " * 18, 3), ("a" + " " * 18, 6)])
@example([("-\n", 6), ("b", 6)])
@example([("\ud800", 6), ("\U0001f600a", 6)])
@hypothesis_settings(max_examples=400)
def test_what_loops_is_what_a_slow_search_finds(pieces: list[tuple[str, int]]) -> None:
    text = "".join(unit * times for unit, times in pieces)
    assert loops(text, of="") == slow(text)


def test_random_texts_of_every_length_loop_as_a_slow_search_finds() -> None:
    draw = random.Random(3)
    texts = ["".join(draw.choices("ab ", (4, 4, draw.choice([1, 9])), k=draw.randint(1, 90))) for _ in range(600)]
    periods = [text * 3 for text in ("".join(draw.choices("abcd. ", k=length)) for length in range(1, 206))]
    found = [loops(text, of="") for text in texts + periods]
    assert found == [slow(text) for text in texts + periods]
    assert 0.1 < sum(found) / len(found) < 0.9


@pytest.mark.parametrize(
    ("translation", "original", "caught"),
    [
        ("no no no no no no", "", True),
        ("Ele disse que que que que que que que", "", True),
        ("我我我我我我我", "", True),
        ("The dog saw the cat. " * 3, "", True),
        ("The dog saw the cat. " * 2, "", False),
        ("ha ha ha ha ha ha ha", "he he he he he he he", False),
        ("..............", "", False),
        ("1 1 1 1 1 1 1 1", "", False),
        ("- - - - - - - -", "", False),
        ("banana, na na na", "", False),
    ],
)
def test_a_loop_is_what_the_original_does_not_repeat(translation: str, original: str, caught: bool) -> None:
    assert loops(translation, of=original) == caught


def test_loops_are_looked_for_in_linear_time() -> None:
    begin = time.process_time()
    assert not loops("".join(random.Random(1).choices("abcdefgh ijklmno", k=20_000)), of="")
    assert time.process_time() - begin < 5
