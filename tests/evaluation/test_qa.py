"""EM and F1 against another reading of SQuAD v1.1's rules, torchmetrics' scorer, and cases done by hand."""

import random
import unicodedata
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers
from torchmetrics.functional.text import squad

from flare_ds.data.cache.encode import PlainForm, tokenize_answers
from flare_ds.evaluation.generate import Decoded
from flare_ds.evaluation.qa import exact_match, normalise, token_f1, unpunctuated
from tests.data.cache.texts import byte_tokenizer
from tests.evaluation.adversarial import disguised, strings

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def slow_normalise(text: str) -> str:
    """Letter by letter: runs of word characters (the rest being space by now) that are an article are dropped."""
    kept = unicodedata.normalize("NFC", text).lower()
    kept = unicodedata.normalize("NFC", "".join(letter for letter in kept if letter not in PUNCTUATION))
    words, word = [], ""
    for letter in [*kept, " "]:
        in_word = letter.isalnum() or letter == "_"
        if word and (in_word != (word[-1].isalnum() or word[-1] == "_")):
            words.append(word)
            word = ""
        word += letter
    words.append(word)
    text = "".join(" " if word in ("a", "an", "the") else word for word in words)
    found, token = [], ""
    for letter in [*text, " "]:
        if letter.isspace():
            found += [token] if token else []
            token = ""
        else:
            token += letter
    return " ".join(found)


def slow_f1(prediction: str, answer: str) -> float:
    said, true = slow_normalise(prediction).split(" "), slow_normalise(answer).split(" ")
    said, true = [word for word in said if word], [word for word in true if word]
    left, shared = list(true), 0
    for word in said:
        if word in left:
            left.remove(word)
            shared += 1
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(true)
    return 2 * precision * recall / (precision + recall)


TEXTS = [
    "",
    " ",
    "the",
    "The  A an",
    "a-the",
    "the-cat",
    "(The) cat!",
    "theatre",
    "cat the",
    "U.S.A.",
    "USA",
    "the U.S.A",
    "3,5",
    "35",
    "1 000",
    "١٩٧٦",  # Arabic-Indic digits
    "1976",
    "১৯৭১ সালে",  # Bengali
    "১৯৭১ সালে।",  # a danda is no ASCII punctuation
    "2014లో",  # Telugu
    "2014 లో",
    "กรุงเทพมหานคร",  # Thai, without spaces
    "กรุงเทพ มหานคร",
    "القاهرة",
    "قاهرة",  # the Arabic article stays
    "القاهرة،",
    "“quoted”",
    '"quoted"',
    "l'État",
    "l’État",
    "İstanbul",  # two letters in lower case
    "i̇stanbul",
    "STRASSE",
    "Straße",
    "e\u0301te\u0301",  # decomposed
    "\u00e9t\u00e9",
    "non\u00a0breaking",
    "non breaking",
    "zero\u200bwidth",
    "line\nbreak\ttab",
    "line break tab",
    "cat cat dog",
    "cat dog dog",
    "🎉 party",
    "a🎉",
    "a_b",
    "an,other",
]


FORMS = [
    ("cafe\u0301", "caf\u00e9"),
    ("\u09dc", "\u09a1\u09bc"),  # Bengali RRA, which NFC takes apart
    ("\u212b", "\u00c5"),  # the sign for an angstrom is the letter
    ("\ud55c\uae00", "\u1112\u1161\u11ab\u1100\u1173\u11af"),  # Hangul by syllable and by letter
    ("q\u0307\u0323", "q\u0323\u0307"),  # marks in either order
    ("=\u0338", "\u2260"),
]


@pytest.mark.parametrize(("one", "other"), FORMS)
def test_a_letter_is_itself_in_every_form(one: str, other: str) -> None:
    for said, right in ((one, other), (other, one), (f"The {one}.", f"x {other}"), (one.upper(), other)):
        assert token_f1(said, [right]) > 0.6
        assert exact_match(said, [right]) == ("x" not in right)


@pytest.mark.parametrize(("one", "other"), [("\ufb01", "fi"), ("\u00bd", "1/2"), ("\u0131", "i"), ("e\u0301", "e")])
def test_what_only_looks_alike_is_another_letter(one: str, other: str) -> None:
    assert not exact_match(one, [other])


def test_ascii_is_scored_as_before() -> None:
    for text in filter(str.isascii, [*TEXTS, *strings(1000)]):
        plain = text.lower().translate(str.maketrans("", "", PUNCTUATION))
        assert unpunctuated(text) == plain


def test_a_tokenizer_that_composes_letters_costs_no_match() -> None:
    """What a model says that was trained on decomposed letters through a tokenizer as Qwen's."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    gold = "cafe\u0301"
    (trained,) = tokenize_answers(PlainForm(tokenizer), [gold])
    said = Decoded(trained[:-1], [-1.0]).written(tokenizer).text
    assert said != gold and exact_match(said, [gold]) and token_f1(said, [gold]) == 1


@pytest.mark.parametrize("text", TEXTS)
def test_normalise_equals_the_slow_version(text: str) -> None:
    assert normalise(text) == slow_normalise(text)


def test_scores_equal_the_slow_versions_on_all_pairs() -> None:
    for prediction, answer in product(TEXTS, TEXTS):
        same = slow_normalise(prediction) == slow_normalise(answer)
        assert exact_match(prediction, [answer]) == same, (prediction, answer)
        assert token_f1(prediction, [answer]) == pytest.approx(slow_f1(prediction, answer)), (prediction, answer)


WORD = st.sampled_from(["a", "an", "the", "The", "cat", "٣", "లో", "ก", "é", "e\u0301", "🎉", "İ"])
GAP = st.sampled_from(["", " ", "  ", "-", ".", "'", "\u2019", "\u00a0", "\n", "_", "।", "،"])
MIXED = st.lists(st.tuples(GAP, WORD), max_size=6).map(lambda parts: "".join(gap + word for gap, word in parts))


@given(st.one_of(MIXED, st.text(max_size=20)), st.lists(MIXED, min_size=1, max_size=3))
def test_the_best_right_answer_counts(prediction: str, answers: list[str]) -> None:
    assert exact_match(prediction, answers) == any(slow_normalise(prediction) == slow_normalise(a) for a in answers)
    assert token_f1(prediction, answers) == pytest.approx(max(slow_f1(prediction, answer) for answer in answers))


def test_a_thousand_adversarial_predictions_score_as_torchmetrics_says() -> None:
    """One exception: where nothing is left of both texts it gives F1 1, as SQuAD v2 does; v1.1 gives 0."""
    draw = random.Random(1)
    predictions = strings(1000)
    # Half of the answers are a prediction in another guise, so that many are right, and many nearly.
    answers = [
        [disguised(draw, prediction) if draw.random() < 0.5 else other, *draw.sample(predictions, draw.randint(0, 2))]
        for prediction, other in zip(predictions, strings(1000, seed=2), strict=True)
    ]
    matches = part_matches = 0
    for prediction, right in zip(predictions, answers, strict=True):
        target = {"answers": {"text": right, "answer_start": [0] * len(right)}, "id": "0"}
        reference = squad({"prediction_text": prediction, "id": "0"}, target)
        assert exact_match(prediction, right) == (reference["exact_match"] == 100), (prediction, right)
        empty = not normalise(prediction)
        expected = 0.0 if empty else float(reference["f1"]) / 100
        assert token_f1(prediction, right) == pytest.approx(expected, abs=1e-6), (prediction, right)
        matches += exact_match(prediction, right)
        part_matches += 0 < expected < 1
    assert 150 < matches < 850 and part_matches > 80, "too easy, or too hard, to tell scorers apart"


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "f1"),
    [
        ("The Eiffel Tower.", ["Eiffel tower"], True, 1.0),
        ("in the Eiffel Tower", ["Eiffel Tower", "Paris"], False, 0.8),
        ("Paris", ["Eiffel Tower", "Paris"], True, 1.0),
        ("cat cat dog", ["cat dog dog"], False, 2 / 3),
        ("the", ["an"], True, 0.0),  # both are empty: v1.1 calls them equal, but they share no token
        ("القاهرة", ["قاهرة"], False, 0.0),
        ("১৯৭১ সালে।", ["১৯৭১ সালে"], False, 0.5),
        ("1,000 people", ["1000 People"], True, 1.0),
    ],
)
def test_by_hand(prediction: str, answers: list[str], em: bool, f1: float) -> None:
    assert exact_match(prediction, answers) is em
    assert token_f1(prediction, answers) == pytest.approx(f1)
