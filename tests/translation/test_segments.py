"""Cutting texts: nothing is lost, no answer is cut, no piece is long, sentences end where they end."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

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
