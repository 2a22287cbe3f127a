"""Metrics against slow versions written out by hand, scikit-learn, scipy, exact binomials, and known coverage."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from flare_ds.scoring import metrics
from flare_ds.scoring.metrics import confidence_interval, contributions, outcome, score

WORDS = ["positive", "negative", "neutral", "ambivalent"]
PAIRS = st.lists(st.tuples(st.sampled_from([*WORDS, None]), st.sampled_from(WORDS)), min_size=1, max_size=60)


def slow_macro_f1(predictions: list[str | None], labels: list[str]) -> float:
    scores = []
    for word in (set(predictions) | set(labels)) - {None}:
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


def right(values) -> list[tuple[str, str]]:
    """What accuracy sees of examples that are right or not."""
    return [("yes" if value else "no", "yes") for value in values]


def labelled(generator, n: int, share: float, classes=WORDS[:3], weights=(0.5, 0.3, 0.2)) -> list[tuple[str, str]]:
    """Of n true labels, a system that says that share of them right and draws the others."""
    true = generator.choice(classes, n, p=weights)
    said = np.where(generator.random(n) < share, true, generator.choice(classes, n))
    return list(zip(said.tolist(), true.tolist(), strict=True))


@given(PAIRS)
def test_scores_equal_the_slow_versions(pairs):
    predictions, labels = map(list, zip(*pairs, strict=True))
    assert score("accuracy", pairs) == pytest.approx(sum(p == t for p, t in pairs) / len(pairs))
    assert score("macro_f1", pairs) == pytest.approx(slow_macro_f1(predictions, labels))


@given(PAIRS)
def test_scores_equal_scikit_learns(pairs):
    """Its macro F1 is over the strings that occur; what is no label word must not be one of them."""
    said, true = zip(*((said or "none of them", true) for said, true in pairs), strict=True)
    occurring = sorted({*said, *true} & {*WORDS})
    assert score("accuracy", pairs) == pytest.approx(accuracy_score(true, said))
    assert score("macro_f1", pairs) == pytest.approx(f1_score(true, said, labels=occurring, average="macro"))
    if "none of them" not in said:
        assert score("macro_f1", pairs) == pytest.approx(f1_score(true, said, average="macro"))


def test_what_is_no_label_word_is_wrong_and_no_class():
    pairs = [("positive", "positive"), (None, "positive"), ("negative", "negative"), (None, "negative")]
    assert score("accuracy", pairs) == 0.5
    assert score("macro_f1", pairs) == pytest.approx(2 / 3)  # both: precision 1, recall 1/2
    assert score("macro_f1", [(None, "positive")]) == 0


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_each_resample_scores_as_scikit_learn_says(metric):
    generator = np.random.default_rng(6)
    pairs = [*labelled(generator, 23, 0.6), (None, "positive"), ("ambivalent", "ambivalent")]
    said, true = np.array([[str(said), true] for said, true in pairs]).T
    numbers_NSF = metrics._numbers(metric, [pairs])
    absent = 0
    for rows in generator.integers(0, 25, size=(200, 25)):
        drawn = sorted({*said[rows], *true[rows]} & {*WORDS})
        absent += len(drawn) < len(WORDS)
        expected = (
            accuracy_score(true[rows], said[rows])
            if metric == "accuracy"
            else f1_score(true[rows], said[rows], labels=drawn, average="macro")
        )
        assert metrics._scores(metric, numbers_NSF[rows].mean(0))[0] == pytest.approx(expected)
    assert absent > 20, "every class is in every resample"


def test_intervals_are_those_of_scipy():
    """Its bootstrap draws rows one by one, and scores each resample with scikit-learn."""
    generator = np.random.default_rng(8)
    pairs = labelled(generator, 150, 0.6)
    said, true = np.array(pairs).T

    def macro_f1(rows) -> float:
        return f1_score(true[rows], said[rows], average="macro")

    options = {"method": "percentile", "confidence_level": metrics.LEVEL, "rng": 1}
    slow = stats.bootstrap((np.arange(150),), macro_f1, vectorized=False, n_resamples=1000, **options)
    assert confidence_interval("macro_f1", [pairs]) == pytest.approx(tuple(slow.confidence_interval), abs=0.012)
    single = stats.bootstrap((said == true,), np.mean, n_resamples=metrics.RESAMPLES, **options)
    assert confidence_interval("accuracy", [pairs]) == pytest.approx(tuple(single.confidence_interval), abs=0.008)


def test_macro_f1_counts_each_class_alike():
    pairs = [("positive", "positive")] * 98 + [("positive", "negative")] * 2
    assert score("macro_f1", pairs) == pytest.approx((2 * 0.98 / 1.98 + 0) / 2)


def test_a_metric_that_has_only_a_name_is_no_other_one():
    pairs = [("positive", "positive"), ("negative", "positive")]
    for ask in (score, lambda metric, pairs: contributions(metric, [pairs]), lambda metric, pairs: outcome(metric, {})):
        with pytest.raises(KeyError, match="mcc"):
            ask("mcc", pairs)


def test_outcomes_are_what_the_metric_sees_of_a_line():
    line = {"prediction": "yes", "label": "no"}
    assert outcome("accuracy", line) == outcome("macro_f1", line) == ("yes", "no")
    assert outcome("accuracy", line | {"prediction": None}) == (None, "no")
    assert outcome("exact_match", {"prediction": "Yes!", "answers": ["yes"], "exact_match": True}) is True


@pytest.mark.parametrize(("hits", "n"), [(282, 400), (10, 50), (148, 150)])
def test_interval_of_an_accuracy_is_the_binomial_one(hits, n):
    lo, hi = confidence_interval("accuracy", [right(np.arange(n) < hits)], seed=3)
    assert abs(lo - binomial_quantile(hits / n, n, 0.025)) <= 1 / n + 1e-9
    assert abs(hi - binomial_quantile(hits / n, n, 0.975)) <= 1 / n + 1e-9


def test_interval_over_seeds_equals_resampling_row_by_row():
    generator = np.random.default_rng(0)
    values = generator.random((3, 300)) < generator.choice([0, 0.3, 0.6, 1], size=300)
    rows = generator.integers(0, 300, size=(20_000, 300))
    expected = np.quantile(values.mean(0)[rows].mean(axis=1), [0.025, 0.975])
    assert confidence_interval("exact_match", values.tolist(), seed=1) == pytest.approx(expected, abs=0.002)


def test_macro_f1_is_resampled_itself():
    """By whole examples, the score of each seed, then their mean; here row by row with the slow version.

    One class is so rare that it is in a third of the samples neither said nor true, and then does not count.
    """
    generator = np.random.default_rng(3)
    true = np.array([WORDS[0]] * 24 + [WORDS[1]] * 15 + [WORDS[2]])
    systems = []
    for share in (0.8, 0.7):
        said = np.where(generator.random(40) < share, true, generator.choice(WORDS[:2], 40))
        systems.append(list(zip(said.tolist(), true.tolist(), strict=True)))

    def mean_of(rows):
        drawn = [list(zip(*(system[row] for row in rows), strict=True)) for system in systems]
        return np.mean([slow_macro_f1(list(p), list(t)) for p, t in drawn])

    samples = generator.integers(0, 40, size=(4000, 40))
    slow = np.array([mean_of(rows) for rows in samples])
    tails = [0.025, 0.975]
    assert confidence_interval("macro_f1", systems) == pytest.approx(np.quantile(slow, tails), abs=0.012)


def test_interval_does_not_depend_on_the_order_of_the_rows_and_repeats_with_its_seed():
    correct = np.random.default_rng(5).random(200) < 0.6
    both = [confidence_interval("accuracy", [right(values)], seed=7) for values in (correct, np.sort(correct))]
    assert both[0] == both[1]


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(11)
    intervals = [confidence_interval("accuracy", [right(generator.random(400) < 0.7)], seed=i) for i in range(2000)]
    assert 0.93 <= np.mean([lo <= 0.7 <= hi for lo, hi in intervals]) <= 0.97


def test_interval_of_macro_f1_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(12)
    truth = score("macro_f1", labelled(generator, 400_000, 0.6))
    intervals = [confidence_interval("macro_f1", [labelled(generator, 400, 0.6)], seed=i) for i in range(2000)]
    assert 0.93 <= np.mean([lo <= truth <= hi for lo, hi in intervals]) <= 0.97


def test_clusters_are_resampled_whole():
    """Passages of one to six questions: drawn one by one, with all their questions; macro F1, so sizes matter twice."""
    generator = np.random.default_rng(14)
    clusters = generator.permutation(np.repeat(np.arange(40), generator.integers(1, 7, 40)))
    easy = generator.random(40) < 0.6
    true = generator.choice(WORDS[:2], len(clusters))
    said = np.where(easy[clusters], true, WORDS[0])
    members = [np.flatnonzero(clusters == cluster) for cluster in range(40)]

    def drawn() -> float:
        rows = np.concatenate([members[cluster] for cluster in generator.integers(0, 40, 40)])
        return slow_macro_f1(said[rows].tolist(), true[rows].tolist())

    slow = np.quantile([drawn() for _ in range(3000)], [0.025, 0.975])
    pairs = list(zip(said.tolist(), true.tolist(), strict=True))
    of_clusters = confidence_interval("macro_f1", [pairs], clusters.tolist())
    of_rows = confidence_interval("macro_f1", [pairs])
    assert of_clusters == pytest.approx(slow, abs=0.012)
    assert of_clusters[1] - of_clusters[0] > 1.3 * (of_rows[1] - of_rows[0])


def test_of_one_draw_nothing_is_known_of_others():
    assert confidence_interval("accuracy", [[("yes", "yes"), ("no", "yes")] * 9], [4] * 18) == (0, 1)


def test_many_clusters_are_drawn_in_slices_of_the_same_draws(monkeypatch):
    """At once they would be 10,000 times as many numbers as there are clusters of different contents."""
    generator = np.random.default_rng(15)
    clusters = np.repeat(np.arange(800), np.arange(800) // 20 + 1)
    pairs = labelled(generator, len(clusters), 0.6)
    tracemalloc.start()
    in_slices = confidence_interval("macro_f1", [pairs], clusters)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6
    monkeypatch.setattr(metrics, "_AT_ONCE", 2**40)
    assert confidence_interval("macro_f1", [pairs], clusters) == in_slices


def test_different_numbers_of_rows_are_never_compared():
    with pytest.raises(AssertionError):
        contributions("exact_match", [[True, False], [True]])
