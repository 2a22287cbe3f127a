"""Cutting texts: nothing is lost, no answer is cut, no piece is long, sentences end where they end."""

import os
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.parquet import read_table

from flare_ds.translation.segments import LONGEST, replace, segment

TEXTS = st.text(alphabet='aB1 .!?。؟।\n"”é中𝄞', max_size=1500)


def pieces(text: str) -> list[str]:
    return [text[start:end] for start, end in segment(text)]


@given(TEXTS)
def test_every_letter_is_in_one_short_piece_and_the_rest_stays(text: str) -> None:
    spans = segment(text)
    assert replace(text, spans, [text[start:end] for start, end in spans])[0].replace(" ", "") == text.replace(" ", "")
    assert all(0 < end - start <= LONGEST for start, end in spans)
    assert all(first[1] <= second[0] for first, second in pairwise(spans))
    outside = set(range(len(text))) - {place for start, end in spans for place in range(start, end)}
    assert not any(text[place].isalpha() for place in outside)
    assert all(text[start:end] == text[start:end].strip() and "\n" not in text[start:end] for start, end in spans)


@given(TEXTS, st.data())
def test_no_cut_falls_into_an_answer(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    for first, last in segment(text, [(start, end)]):
        inside = text[max(first, start) : min(last, end)]
        if inside:  # only white space at the ends of the answer may stick out
            assert text[start : max(first, start)].strip() == "" and text[min(last, end) : end].strip() == ""


def test_sentences_end_at_their_marks_in_every_script() -> None:
    assert pieces('He said "Go!" She went. Really? Yes… No') == ['He said "Go!"', "She went.", "Really?", "Yes…", "No"]
    assert pieces("你好。他来了！真的？") == ["你好。", "他来了！", "真的？"]
    assert pieces("هل هذا صحيح؟ نعم.") == ["هل هذا صحيح؟", "نعم."]
    assert pieces("यह सच है। हाँ॥ ठीक") == ["यह सच है।", "हाँ॥", "ठीक"]
    assert pieces("One\n\n  Two\n3\n") == ["One", "Two"]


def test_abbreviations_and_numbers_do_not_end_a_sentence() -> None:
    sentence = "Dr. Smith met J. K. Rowling in St. Louis at 3.15 p.m. on Monday."
    assert pieces(sentence) == [sentence]
    assert pieces("He moved to the U.S. Army base.") == ["He moved to the U.S. Army base."]


def test_a_long_sentence_is_cut_at_spaces() -> None:
    text = "word " * 300
    assert all(piece.startswith("word") and piece.endswith("word") for piece in pieces(text))
    assert len(pieces(text)) == 4


def test_a_long_answer_in_a_long_sentence_stays_whole() -> None:
    text = "word " * 300
    for answer in ((350, 449), (0, 999), (500, 1499)):
        spans = segment(text, [answer])
        assert any(start <= answer[0] and answer[1] <= end for start, end in spans)
        assert replace(text, spans, [text[start:end] for start, end in spans])[0] == text


def test_languages_that_need_a_space_between_sentences_get_one() -> None:
    text = "你好。他来了。"
    assert replace(text, segment(text), ["Hello.", "He came."]) == ("Hello. He came.", [0, 7])
    assert replace(text, segment(text), ["你好。", "他来了。"])[0] == text


WHOLE = [
    "దూరం 5 కి. మీ. ఉంటుంది",  # km, spaced as Telugu writes it
    "Родился в 44 г. до н. э. в Риме, 5 тыс. жителей",
    "А. С. Пушкин родился здесь",
    "Am 3. Oktober 1990 kam er",
    "그는 1990. 3. 5. 태어났다",
    "د. أحمد طبيب",
    "डॉ. शर्मा आए",
    "La Sra. Álvarez llegó",
    "Ni km 12. Kisha akaondoka",
    "Se oli n. 5 km",
    "Pada tgl. 5 Mei 1990",
]


@pytest.mark.parametrize("sentence", WHOLE)
def test_units_initials_and_dates_of_any_script_are_not_torn(sentence: str) -> None:
    assert pieces(sentence) == [sentence]


TWO = [
    ("She left in 1990.", "Then he came."),
    ("Он жил там.", "Потом уехал."),
    ("그는 학생이다.", "그녀는 왔다."),
    ("ఇది మంచిది.", "అతను వచ్చాడు."),
    ("Hän tuli kotiin.", "Sitten hän lähti."),
    ("তিনি এসেছিলেন।", "পরে গেলেন।"),
    ("Alikuwa hapa.", "Kisha akaondoka."),
    ("كان هنا.", "ثم ذهب."),
    ("పాఠశాల ఉంది.", "అతను వచ్చాడు."),
    ("ఇక్కడ ఉంది.", "అది మంచిది."),
    ("갈 수 있다.", "그녀는 왔다."),
    ("Ia tinggal di sana.", "Lalu pergi."),
]


@pytest.mark.parametrize(("first", "second"), TWO)
def test_sentences_of_every_language_of_tydiqa_are_told_apart(first: str, second: str) -> None:
    assert pieces(f"{first} {second}") == [first, second]


def test_a_table_of_contents_is_read_in_linear_time() -> None:
    begin = time.process_time()
    segment("Chapter one " + "." * 200_000 + " 7")
    segment("Chapter one ." + ' "' * 100_000)
    assert time.process_time() - begin < 5


DATA = Path(os.environ.get("FLARE_DS_REAL_DATA", ""))


def test_hardly_a_sentence_of_real_text_ends_before_a_small_letter() -> None:
    table = DATA / "tydiqa" / "validation.parquet"
    if not table.is_file():
        pytest.skip("FLARE_DS_REAL_DATA names no directory with tydiqa/validation.parquet")
    texts = set(read_table(table, columns=["context"])["context"].to_pylist())
    pairs = [pair for text in texts for line in text.split("\n") for pair in pairwise(pieces(line))]
    ends = [(first, second) for first, second in pairs if first[-1] in ".!?…" and len(first) < LONGEST / 2]
    assert len(ends) > 1000 and not [end for end in ends if end[1][0].islower()]


def test_a_long_text_without_spaces_is_cut_between_letters() -> None:
    """Thai: a vowel sign belongs to the letter before it. What has more signs than fit is cut all the same."""
    letter = "ก\u0e34"
    text = "ก" + letter * LONGEST
    spans = segment(text)
    assert len(spans) > 2 and all(text[start] == "ก" and end - start <= LONGEST for start, end in spans)
    assert "".join(text[start:end] for start, end in spans) == text
    assert len(segment("a" + "\u0301" * (3 * LONGEST) + "b")) > 1
