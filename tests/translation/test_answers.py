"""Answers in translations: where marks survive each answer is found at its place, and where they do not, no other."""

from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flare_ds.tasks.base import Answer, Row
from flare_ds.translation.answers import find, mark, unmark
from flare_ds.translation.rows import UntranslatedError, segments_of, translate_row

WORDS = st.lists(
    st.sampled_from(["ab", "cde", '"f"', "[g]", "h*", "“i”", "Jk.", "l", "«m", "42"]), min_size=1, max_size=30
)


def say(text: str) -> str:
    """A translation that changes lengths and order: words backwards, each vowel doubled; marks stay at their words."""
    return " ".join(word.replace("a", "aa").replace("e", "ee").upper() for word in text.split())


def translate(row: Row, *, engine: Callable[[str], str] = say, held_out: bool = False) -> Row:
    said = {segment: engine(segment) for segment in segments_of(row, "text", held_out=held_out)}
    return translate_row(row, "text", said, held_out=held_out)


def row(text: str, *answers: Answer) -> Row:
    return Row("1", {"text": text, "question": "Who?"}, None, answers)


@given(WORDS, st.data())
def test_a_marked_answer_is_found_where_it_stands_however_many_marks_the_text_has(
    words: list[str], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    text, start = " ".join(words), len(" ".join(words[:first])) + (first > 0)
    answer = " ".join(words[first : last + 1])
    sentence_mark = mark(text, (start, start + len(answer)))
    assume(sentence_mark is not None)
    found = unmark(say(str(sentence_mark)), text)
    assert found is not None
    clean, (begin, end) = found
    assert clean == say(text)
    before = say(" ".join(words[:first]))
    assert begin == len(before) + (first > 0) and clean[begin:end] == say(answer)


@given(WORDS, st.data())
def test_an_answer_of_a_row_is_where_its_start_says_or_has_none(words: list[str], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    text, start = " ".join(words), len(" ".join(words[:first])) + (first > 0)
    answer = Answer(" ".join(words[first : last + 1]), start)
    translated = translate(row(text, answer))
    assert translated.fields["text"] == say(text) and translated.fields["question"] == "WHO?"
    (found,) = translated.answers
    assert found.start is not None and translated.fields["text"][found.start :].startswith(found.text)
    assert found.text == say(answer.text)


def test_of_equal_words_the_marked_one_is_the_answer() -> None:
    text = "Ann met Bea. Bea met Ann. Then Ann left."
    for start in (0, 21, 31):
        (found,) = translate(row(text, Answer("Ann", start))).answers
        before = say(text[:start].strip())
        assert found == Answer("ANN", len(before) + (start > 0))


def test_each_answer_is_found_again() -> None:
    text = "In 1999 Ann met Bea at home. Later they met Ann at sea."
    answers = [Answer("Bea", 16), Answer("Ann", 44), Answer("met Bea", 12), Answer("1999", 3)]
    translated = translate(row(text, *answers))
    out = translated.fields["text"]
    assert out == say(text)
    assert [found.text for found in translated.answers] == [say(answer.text) for answer in answers]
    assert [found.start for found in translated.answers] == [
        out.index("BEEA"), out.rindex("ANN"), out.index("MEET BEEA"), 3
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("translation", "clean", "answer"),
    [
        ('Na "Praça de Soho".', "Na Praça de Soho.", "Praça de Soho"),
        ("Na « Praça ».", "Na Praça.", "Praça"),
        ("A „Praça“, ali", "A Praça, ali", "Praça"),
        ('em" Praça "ali', "em Praça ali", "Praça"),
    ],
)
def test_the_quotes_of_other_languages_are_known(translation: str, clean: str, answer: str) -> None:
    found = unmark(translation, "In Soho Square")
    assert found is not None
    assert found[0] == clean and clean[slice(*found[1])] == answer


@pytest.mark.parametrize("broken", ["Na Praça", 'Na "Praça', 'Na "" Praça', 'Na "a" "b"', '”Na“ "', "»Na«x»", "”Na“"])
def test_marks_that_did_not_survive_are_refused(broken: str) -> None:
    assert unmark(broken, "In Soho Square") is None


def without_marks(text: str) -> str:
    return say(text.replace('"', ""))


def test_without_marks_the_answers_own_translation_is_looked_for() -> None:
    text = "Can Ann see Nan? Ann can."
    (found,) = translate(row(text, Answer("Ann", 17)), engine=without_marks).answers
    assert found == Answer("ANN", say(text).rindex("ANN"))


def test_an_answer_that_is_nowhere_keeps_its_own_translation_and_no_place() -> None:
    def engine(text: str) -> str:
        return "Someone else" if text == "Ann" else without_marks(text)

    (found,) = translate(row("We saw Ann there.", Answer("Ann", 7)), engine=engine).answers
    assert found == Answer("Someone else", None)


def test_marks_that_are_lost_leave_no_trace_in_the_text() -> None:
    def engine(text: str) -> str:
        return say(text).replace('"', "", 1)

    translated = translate(row("We saw Ann there.", Answer("Ann", 7)), engine=engine)
    assert translated.fields["text"] == "WEE SAAW ANN THEEREE."
    assert translated.answers == (Answer("ANN", 9),)


def test_an_answer_without_a_place_is_translated_alone() -> None:
    assert translate(row("We saw Ann.", Answer("Ann", None))).answers == (Answer("ANN", None),)


def test_only_whole_words_are_found() -> None:
    assert find("an", "Can an ant", [(0, 10)]) == (4, 6)
    assert find("An", "Can an ant", [(0, 10)]) == (4, 6)
    assert find("nt", "Can an ant", [(0, 10)]) is None
    assert find("北京", "我在北京住", [(0, 5)]) == (2, 4)
    assert find(" ", "a b", [(0, 3)]) is None
    assert find("राम", "रामायण में राम", [(0, 15)]) == (11, 14)  # a vowel sign goes on with a word
    assert find("Émile", "by e\u0301mile Zola", [(0, 15)]) == (3, 9)
    assert find("Emil", "by E\u0301mile, E\u0301mil", [(0, 16)]) is None
    assert find("ΟΔΟΣ", "η οδός, η οδος", [(0, 14)]) == (10, 14)


def test_a_sentence_without_translation_fails_its_row() -> None:
    one = row("We saw Ann. She saw us.", Answer("Ann", 7))
    translations: dict[str, str | None] = {
        segment: say(segment) for segment in segments_of(one, "text", held_out=False)
    }
    assert set(translations) == {'We saw "Ann".', "We saw Ann.", "She saw us.", "Who?", "Ann"}
    # What is needed only where the marks are lost may be missing.
    assert (
        translate_row(one, "text", translations | {"We saw Ann.": None, "Ann": None}, held_out=False).answers[0].start
        == 9
    )
    for missing, empty in (("She saw us.", False), ("Who?", True)):
        with pytest.raises(UntranslatedError) as raised:
            translate_row(one, "text", translations | {missing: "" if empty else None}, held_out=False)
        assert raised.value.empty == empty
    with pytest.raises(UntranslatedError):
        translate_row(one, "text", translations | {'We saw "Ann".': None, "We saw Ann.": None}, held_out=False)


def swayed(text: str) -> str:
    """A translation in which marks change the wording of what they enclose, and of what is beside it."""
    return say(text.replace('saw "', 'met "').replace('"Ann', '"Dame Ann'))


def test_what_a_held_out_text_says_does_not_depend_on_its_answers() -> None:
    """Nor where its sentences end; its answers are found in it as they are translated there, marked or alone."""
    text = "We saw Ann. Then she saw Bob at 5 p.m. We left."
    answers = {place: Answer(text[place:end], place) for place, end in ((7, 10), (25, 28), (29, 37), (32, 46))}
    plain = translate(row(text), engine=swayed).fields["text"]
    told = {place: translate(row(text, one), engine=swayed, held_out=True) for place, one in answers.items()}
    assert {one.fields["text"] for one in told.values()} == {plain}
    assert translate(row(text, answers[7]), engine=swayed).fields["text"] != plain, "in training the marks' wording"
    for place, one in answers.items():
        (found,) = told[place].answers
        assert found.start is not None and plain[found.start :].startswith(found.text), one
        assert found.text == say(one.text)
