"""Windows of long texts, against a slow search through all of them."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from flare_ds.data.cache.windows import Fields, Wanted, Window, Windows

COST = {"a": 1, "b": 2, "c": 3, ".": 0}
"""Tokens of each character; a real tokenizer has all of these, some characters being part of the token before."""
TEMPLATE = 4
texts = st.lists(st.text("".join(COST), max_size=60), min_size=1, max_size=5)
limits = st.integers(TEMPLATE + 3, 24)


def tokenize(fields: Sequence[Fields]) -> list[list[int]]:
    return [[0] * (TEMPLATE + sum(COST[character] for character in row["text"])) for row in fields]


def fits(text: str, limit: int) -> bool:
    return TEMPLATE + sum(COST[character] for character in text) <= limit


def windows(limit: int, tokenize: Callable[[Sequence[Fields]], list[list[int]]] = tokenize) -> Windows:
    return Windows(tokenize, "text", limit)


def rows(texts: Sequence[str]) -> list[Fields]:
    return [{"question": "?", "text": text} for text in texts]


def span(window: Window) -> tuple[int, int]:
    return window.start, window.end


def nearest(text: str, width: int, middle: float) -> tuple[int, int]:
    """The window of a width whose middle is nearest to a place."""
    start = min(range(len(text) - width + 1), key=lambda start: abs(start + width / 2 - middle))
    return start, start + width


@given(texts, limits, st.data())
def test_one_window_is_the_widest_around_its_place(texts: list[str], limit: int, data: st.DataObject) -> None:
    middles = [data.draw(st.integers(0, 2 * len(text))) / 2 for text in texts]
    wanted = [Wanted(row, middle) for row, middle in zip(rows(texts), middles, strict=True)]
    found = windows(limit).fit(wanted)
    for text, middle, window in zip(texts, middles, found, strict=True):
        tried = [nearest(text, width, middle) for width in range(len(text) + 1)]
        assert span(window) == [(start, end) for start, end in tried if fits(text[start:end], limit)][-1]
        assert window.prompt == tokenize(rows([text[window.start : window.end]]))[0]


@given(texts, limits, st.data())
def test_an_answer_is_inside_its_window_or_seen_not_to_fit(texts: list[str], limit: int, data: st.DataObject) -> None:
    answers = []
    for text in texts:
        start = data.draw(st.integers(0, len(text)))
        answers.append((start, data.draw(st.integers(start, len(text)))))
    wanted = [Wanted(row, (a + b) / 2, b - a) for row, (a, b) in zip(rows(texts), answers, strict=True)]
    found = windows(limit).fit(wanted)
    for text, (start, end), window in zip(texts, answers, found, strict=True):
        assert window.start <= start and end <= window.end
        assert windows(limit).fits(window) == fits(text[start:end], limit)


def leaning(text: str, width: int, answer: tuple[int, int], before: float) -> tuple[int, int]:
    """The window of a width that has the share asked for of what is beside the answer before it, and as little more."""
    starts = range(len(text) - width + 1)
    fair = [start for start in starts if answer[0] - start >= before * (width - answer[1] + answer[0])]
    start = fair[-1] if fair else starts[0]
    return start, start + width


@given(texts, limits, st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 1.0]), st.data())
def test_an_answer_stands_where_it_is_asked_to(
    texts: list[str], limit: int, before: float, data: st.DataObject
) -> None:
    starts = [data.draw(st.integers(0, len(text))) for text in texts]
    answers = [(start, data.draw(st.integers(start, len(text)))) for start, text in zip(starts, texts, strict=True)]
    wanted = [Wanted(row, (a + b) / 2, b - a, before) for row, (a, b) in zip(rows(texts), answers, strict=True)]
    for text, answer, window in zip(texts, answers, windows(limit).fit(wanted), strict=True):
        tried = [leaning(text, width, answer, before) for width in range(answer[1] - answer[0], len(text) + 1)]
        assert span(window) == ([one for one in tried if fits(text[slice(*one)], limit)] or tried[:1])[-1]


def slide_slowly(text: str, limit: int) -> list[tuple[int, int]]:
    """One character after another, as long as they fit."""
    if fits(text, limit):
        return [(0, len(text))]
    found, start = [], 0
    while True:
        end = start
        while end < len(text) and fits(text[start : end + 1], limit):
            end += 1
        if end == len(text):
            break
        found.append((start, end))
        start = end - (end - start) // 4
    while start and fits(text[start - 1 :], limit):
        start -= 1
    return [*found, (start, len(text))]


@given(texts, limits)
def test_windows_side_by_side_are_those_of_a_slow_search(texts: list[str], limit: int) -> None:
    found = windows(limit).slide(rows(texts))
    assert [[span(window) for window in row] for row in found] == [slide_slowly(text, limit) for text in texts]


@given(texts, limits)
def test_every_character_is_shown_and_no_short_answer_is_torn(texts: list[str], limit: int) -> None:
    for text, found in zip(texts, windows(limit).slide(rows(texts)), strict=True):
        assert all(map(windows(limit).fits, found))
        spans = [range(window.start, window.end) for window in found]
        assert set().union(*spans) == set(range(len(text)))
        longest = min((len(one) for one in spans[:-1]), default=len(text)) // 4
        for start in range(len(text) - longest + 1):
            assert any(one.start <= start and start + longest <= one.stop for one in spans)


@pytest.mark.parametrize("text", ["", "b", "bbb"])
def test_where_nothing_fits_nothing_is_shown_but_an_answer(text: str) -> None:
    choose = windows(TEMPLATE)
    assert [[span(window) for window in row] for row in choose.slide(rows([text]))] == [[(0, 0)]]
    assert span(choose.fit([Wanted(rows([text])[0], len(text) / 2, len(text))])[0]) == (0, len(text))


def test_a_book_is_tokenized_a_few_times_and_a_batch_in_few_calls() -> None:
    calls, characters = 0, 0

    def counting(fields: Sequence[Fields]) -> list[list[int]]:
        nonlocal calls, characters
        calls, characters = calls + 1, characters + sum(len(row["text"]) for row in fields)
        return tokenize(fields)

    book = "ab.c" * 50_000
    windows(300, counting).slide(rows([book]))
    assert characters < 20 * len(book)
    calls = 0
    windows(300, counting).fit([Wanted(row, 900.0) for row in rows([book[:5000]] * 200)])
    assert calls < 20


LETTERS = ["a", "e\u0301", "की", "क्षि", "👩\u200d👩\u200d👧", "한", "\u1112\u1161\u11ab", "กำ", "🇵🇱"]
WORDS = st.lists(st.sampled_from(LETTERS), min_size=1, max_size=12).map("".join)


def whole_letters(fields: Sequence[Fields]) -> list[list[int]]:
    return [[0] * len(row["text"]) for row in fields]


@given(st.lists(WORDS, max_size=9), st.integers(12, 40), st.data())
def test_neither_words_nor_letters_are_torn(words: list[str], limit: int, data: st.DataObject) -> None:
    text = " ".join(words)
    edges = {0, *accumulate(len(letter) for letter in regex.findall(r"\X", text))}
    choose = windows(limit, whole_letters)
    middle = data.draw(st.integers(0, len(text)))
    (fitted,), (slid,) = choose.fit([Wanted(rows([text])[0], middle)]), choose.slide(rows([text]))
    assert all(map(choose.fits, (fitted, *slid)))
    assert {place for window in (fitted, *slid) for place in span(window)} <= edges
    begins = {place for place in edges if text[place - 1 : place] == " " != text[place : place + 1]}
    ends = {place for place in edges if text[place : place + 1] == " " != text[place - 1 : place]}
    if fitted.end < len(text):
        assert fitted.end in ends or ends.isdisjoint(range(middle + 1, fitted.end + 1))
    if fitted.start > 0:
        assert fitted.start in begins or begins.isdisjoint(range(fitted.start, max(e for e in edges if e <= middle)))
    for window in slid[:-1]:
        first = min(edge for edge in edges if edge > window.start)
        assert window.end in ends or ends.isdisjoint(range(first + 1, window.end + 1))
    shown = set().union(*(range(window.start, window.end) for window in slid))
    assert {text[place] for place in set(range(len(text))) - shown} <= {" "}
