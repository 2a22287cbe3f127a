"""Metrics against slow versions written out by hand, exact binomials, and known coverage on simulated data."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare_ds.evaluation.metrics import accuracy, confidence_interval, macro_f1, paired_difference

WORDS = ["positive", "negative", "neutral", "ambivalent"]
PAIRS = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(WORDS)), min_size=1, max_size=60)


def slow_macro_f1(predictions: list[str], labels: list[str]) -> float:
    scores = []
    for word in set(predictions) | set(labels):
        hits = sum(p == word and t == word for p, t in zip(predictions, labels, strict=True))
        precision = hits / predictions.count(word) if word in predictions else 0.0
        recall = hits / labels.count(word) if word in labels else 0.0
        scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return sum(scores) / len(scores)


def binomial_quantile(share: float, n: int, tail: float) -> float:
    """Smallest k/n whose Binomial(n, share) distribution function reaches `tail`."""
    total = 0.0
    for k in range(n + 1):
        total += math.comb(n, k) * share**k * (1 - share) ** (n - k)
        if total >= tail:
            return k / n
    return 1.0


@given(PAIRS)
def test_scores_equal_the_slow_versions(pairs):
    predictions, labels = map(list, zip(*pairs, strict=True))
    assert accuracy(predictions, labels) == pytest.approx(sum(p == t for p, t in pairs) / len(pairs))
    assert macro_f1(predictions, labels) == pytest.approx(slow_macro_f1(predictions, labels))


def test_macro_f1_counts_each_class_alike():
    labels = ["positive"] * 98 + ["negative"] * 2
    assert macro_f1(["positive"] * 100, labels) == pytest.approx((2 * 0.98 / 1.98 + 0) / 2)


@pytest.mark.parametrize(("hits", "n"), [(282, 400), (10, 50), (148, 150)])
def test_interval_of_an_accuracy_is_the_binomial_one(hits, n):
    correct = np.arange(n) < hits
    lo, hi = confidence_interval(correct, seed=3)
    assert abs(lo - binomial_quantile(hits / n, n, 0.025)) <= 1 / n + 1e-9
    assert abs(hi - binomial_quantile(hits / n, n, 0.975)) <= 1 / n + 1e-9


def test_interval_of_seed_means_equals_resampling_row_by_row():
    generator = np.random.default_rng(0)
    values = generator.choice([0, 1 / 3, 2 / 3, 1], size=300, p=[0.2, 0.1, 0.2, 0.5])
    rows = generator.integers(0, 300, size=(20_000, 300))
    expected = np.quantile(values[rows].mean(axis=1), [0.025, 0.975])
    assert confidence_interval(values, seed=1) == pytest.approx(expected, abs=0.002)


def test_interval_does_not_depend_on_the_order_of_the_rows_and_repeats_with_its_seed():
    correct = np.random.default_rng(5).random(200) < 0.6
    assert confidence_interval(correct, seed=7) == confidence_interval(np.sort(correct), seed=7)


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(11)
    intervals = [confidence_interval(generator.random(400) < 0.7, seed=i) for i in range(400)]
    covered = np.mean([lo <= 0.7 <= hi for lo, hi in intervals])
    assert 0.92 <= covered <= 0.98  # .95, and three standard errors of 400 draws


def test_paired_interval_is_the_normal_one_of_the_differences():
    generator = np.random.default_rng(2)
    b = generator.random(1000) < 0.65
    a = np.where(generator.random(1000) < 0.2, generator.random(1000) < 0.75, b)
    difference = paired_difference(a, b)
    half = 1.96 * np.std(a.astype(float) - b) / math.sqrt(1000)
    assert difference.mean == pytest.approx(a.mean() - b.mean())
    assert (difference.lo, difference.hi) == pytest.approx((difference.mean - half, difference.mean + half), abs=0.003)


def test_paired_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(13)
    covered = 0
    for i in range(400):
        ease = generator.random(400)  # rows hard for one are hard for the other: the pairing matters
        result = paired_difference(ease < 0.70, (ease + 0.1 * generator.standard_normal(400)) < 0.65, seed=i)
        truth = 0.70 - 0.65  # the noise moves as many rows up as down, far from the ends of [0, 1]
        covered += result.lo <= truth <= result.hi
    assert 0.92 <= covered / 400 <= 0.98


def test_pairing_narrows_the_interval_of_systems_that_agree():
    b = np.random.default_rng(4).random(500) < 0.6
    a = b.copy()
    a[:10] = ~a[:10]
    lo, hi = confidence_interval(b)
    difference = paired_difference(a, b)
    assert difference.hi - difference.lo < (hi - lo) / 2


def test_a_system_does_not_differ_from_itself():
    correct = np.random.default_rng(4).random(100) < 0.6
    result = paired_difference(correct, correct)
    assert (result.mean, result.lo, result.hi) == (0, 0, 0)


def test_different_numbers_of_rows_are_never_compared():
    with pytest.raises(AssertionError):
        paired_difference([True, False], [True])
