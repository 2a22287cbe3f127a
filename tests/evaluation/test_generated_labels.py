"""Generated label words: what is written is read as a label word, or as none, by rules written out again here."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from pytest import approx
from sklearn.metrics import accuracy_score, f1_score

from flare_ds.config import Config
from flare_ds.evaluation.answerable import label_readings
from flare_ds.evaluation.answers import Written, score_generated_labels
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.scores import Scores
from flare_ds.exceptions import ConfigError
from flare_ds.training.run import open_run
from tests.evaluation.adversarial import strings
from tests.toy import toy_settings

WORDS = ["positive", "negative", "neutral", "not sure", "ไม่", "سلبي", "n\u00e9gatif"]


def scored(
    written: Sequence[str],
    labels: Sequence[int],
    words: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Scores:
    """What the scores are where the model writes such answers, of which those without a letter come to no end."""
    said = [Written(text, -1.0, bool(text.strip())) for text in written]
    monkeypatch.setattr("flare_ds.evaluation.answers.written", lambda *_, **__: said)
    split = SimpleNamespace(labels=np.array(labels), ids=lambda row: f"r{row}", clusters=np.arange(len(labels)))
    cache = SimpleNamespace(split=lambda _: split, labels=list(words))
    return score_generated_labels(Asked(None, cache, None), "test", metric="macro_f1")  # type: ignore[arg-type]


def slow_reading(text: str, words: Sequence[str]) -> str | None:
    """Letter by letter: lower case, no ASCII punctuation, no white space; then the whole text, or nothing."""

    def compared(text: str) -> str:
        kept = [letter for letter in text.lower() if letter not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"]
        return "".join(letter for letter in kept if not letter.isspace())

    found = [word for word in words if compared(word) == compared(text)]
    return found[0] if found else None


def test_a_thousand_adversarial_answers_score_as_scikit_learn_says(monkeypatch: pytest.MonkeyPatch) -> None:
    written, draw = strings(1000, WORDS), np.random.default_rng(0)
    readings = [slow_reading(text, WORDS) for text in written]
    right = draw.random(1000) < 0.5
    labels = [
        WORDS.index(said) if said is not None and hit else int(draw.integers(len(WORDS)))
        for said, hit in zip(readings, right, strict=True)
    ]
    scores = scored(written, labels, WORDS, monkeypatch)
    assert [record["prediction"] for record in scores.records] == readings
    assert [record["text"] for record in scores.records] == written
    assert [record["label"] for record in scores.records] == [WORDS[label] for label in labels]
    said, true = [said or "none of them" for said in readings], [WORDS[label] for label in labels]
    assert scores.figures["accuracy"] == approx(accuracy_score(true, said))
    assert scores.score == scores.figures["macro_f1"] == approx(f1_score(true, said, labels=WORDS, average="macro"))
    assert scores.figures["not_a_label"] == approx(np.mean([reading is None for reading in readings]))
    assert scores.figures["cut_off"] == approx(np.mean([not text.strip() for text in written]))
    assert scores.figures["cut_off"] > 0
    hits = sum(said == true for said, true in zip(readings, true, strict=True))
    assert scores.figures["accuracy"] == approx(hits / 1000)
    assert 0.3 < scores.figures["not_a_label"] < 0.8 and scores.answers == "generated"
    assert {readings.count(word) > 20 for word in WORDS} == {True}, "a word that is hardly ever written"


@pytest.mark.parametrize(
    ("text", "prediction"),
    [
        ("positive", "positive"),
        (" Positive. ", "positive"),
        ("NOT  sure!", "not sure"),
        ("not-sure", "not sure"),
        ("notsure", "not sure"),
        ("the positive", None),  # articles are SQuAD's affair
        ("positive negative", None),
        ("", None),
        ("positive。", None),
        ("posit\u200bive", None),
        ("ไม่", "ไม่"),
        ("ne\u0301gatif", "n\u00e9gatif"),
    ],
)
def test_by_hand(text: str, prediction: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = scored([text], [0], WORDS, monkeypatch).records
    assert record["prediction"] == prediction


@pytest.mark.parametrize("words", [["A+", "A-"], ["yes", "YES"], ["!", "a"], ["alarm set", "alarm_set"]])
def test_label_words_that_punctuation_or_case_tells_apart_are_only_ranked(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.answers='generated'.* differ in nothing but case") as error:
        label_readings(words)
    assert "evaluate.answers=ranked" in error.value.fix


def test_a_run_that_could_not_be_scored_is_refused_before_it_begins(tmp_path) -> None:
    settings = toy_settings(tmp_path) | {"adapter": {"train_head": True}, "evaluate": {"answers": "generated"}}
    with pytest.raises(ConfigError, match=r"adapter\.train_head=true"):
        open_run(Config.model_validate(settings), train=True)
    assert not (tmp_path / "run").exists()
