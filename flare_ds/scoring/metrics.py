"""Scores of held-out examples, and how sure of them one may be.

Exact matches are SQuAD's (`flare_ds.evaluation.qa`).

    accuracy    share of examples whose label word was said
    macro_f1    mean over the task's classes of their F1; a class that is neither said nor true has none, and does not
                count. What is said and no label word is no class either: it is only missing where it should be right

Averaging over whatever strings occur, as scikit-learn does unless told the labels, would make each slip of a
generating model a class of F1 0; and counting absent classes as 0 would punish a small sample.

A score is a function of the mean, over examples, of some numbers each example gives:

    accuracy, exact_match    1 where it is right, else 0                   the mean itself
    macro_f1                 three for each class, 1 where that class is   mean over classes of 2·right / (said + true)
                             both said and true (right), said, true

So one bootstrap serves all: draw examples, take the mean of their numbers, then the function. Examples of one cluster
(questions about one passage) are drawn together. Intervals are 95 % percentiles: the test examples are the sample, the
training seed is not. They say how far the score of one run would move with other examples, not with another seed (that
is `flare_ds.scoring.sureness`). All right (or wrong) gives an interval of no width.

Shape suffixes: N examples, S systems (runs of different seeds, say), F numbers an example gives, R resamples,
K clusters, V distinct clusters, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from flare_ds.tasks.base import Metric

LEVEL = 0.95
RESAMPLES = 10_000
_AT_ONCE = 2**20
"""Numbers that are drawn at once: a bootstrap over a million examples fits into memory."""
INTERVAL = {"level": LEVEL, "method": "percentile bootstrap over clusters of examples", "resamples": RESAMPLES}
"""What intervals are, in the words of metrics.json."""

Outcome = bool | tuple[str | None, str]
"""What a metric sees of one example: whether it is right (exact_match), or the label word that was said, None where
what was said is none, and the true one."""


def outcome(metric: Metric, record: Mapping[str, Any]) -> Outcome:
    """What a metric sees of a row of predictions.parquet.

    Raises:
        KeyError: the row lacks a field.
    """
    return _KINDS[metric].outcome(record)


def score(metric: Metric, outcomes: Sequence[Outcome]) -> float:
    """The score of one system on N examples."""
    return _scores(metric, _numbers(metric, [outcomes]).mean(0)).item()


def confidence_interval(
    metric: Metric, systems: Sequence[Sequence[Outcome]], clusters: Sequence[int] | None = None, seed: int = 0
) -> tuple[float, float]:
    """Bounds of the mean score of S systems on the same N examples, in the same order.

    Args:
        metric: what is bounded.
        systems: outcomes of each.
        clusters: of each example; those of one are drawn together. None: each example is one. Of a single cluster
            nothing is known but what scores there are.
        seed: of the bootstrap.
    """
    if clusters is not None and len(set(clusters)) == 1:
        return 0.0, 1.0
    scores_R = _resampled(metric, systems, range(len(systems[0])) if clusters is None else clusters, seed).mean(1)
    lo, hi = np.quantile(scores_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(lo), float(hi)


def contributions(metric: Metric, systems: Sequence[Sequence[Outcome]]) -> NDArray[np.float64]:
    """What each example contributes to each system's score: [S, N], whose means over N are the scores.

    A score that is a mean is made of its examples' numbers. Macro F1 is linearised where it stands: an example gives
    the score plus its numbers' distance from their mean along the gradient, which is its influence on the score.
    """
    numbers_NSF, gradient = _numbers(metric, systems), _KINDS[metric].gradient
    if gradient is None:
        return numbers_NSF[..., 0].T
    means_SF = numbers_NSF.mean(0)
    influence_NS = ((numbers_NSF - means_SF) * gradient(means_SF)).sum(-1)
    return (_scores(metric, means_SF) + influence_NS).T


def _macro_f1_gradient(means_SF: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the mean over classes of 2·right / (said + true), by right, said and true: [S, F]."""
    right_SC, said_SC, true_SC = np.split(means_SF, 3, axis=-1)
    both_SC = said_SC + true_SC
    occurs_SC = both_SC > 0
    both_SC = np.where(occurs_SC, both_SC, 1)
    classes_S1 = occurs_SC.sum(-1, keepdims=True)
    by_right_SC, by_other_SC = 2 / both_SC * occurs_SC, -2 * right_SC / both_SC**2
    return np.concatenate([by_right_SC, by_other_SC, by_other_SC], axis=-1) / classes_S1


def _numbers(metric: Metric, systems: Sequence[Sequence[Outcome]]) -> NDArray[np.float64]:
    """What each example gives for each system: [N, S, F]."""
    examples = len(systems[0])
    assert examples and all(len(system) == examples for system in systems), [len(system) for system in systems]
    return _KINDS[metric].numbers(systems)


def _matches(systems: Sequence[Sequence[Any]]) -> NDArray[np.float64]:
    return np.array(systems, np.float64).T[:, :, None]


def _right_words(systems: Sequence[Sequence[Any]]) -> NDArray[np.float64]:
    said_SN, true_SN, _ = _label_numbers(systems)
    return (said_SN == true_SN).astype(np.float64).T[:, :, None]


def _right_said_true(systems: Sequence[Sequence[Any]]) -> NDArray[np.float64]:
    said_SN, true_SN, classes = _label_numbers(systems)
    said_NSC, true_NSC = (numbers_SN.T[..., None] == np.arange(classes) for numbers_SN in (said_SN, true_SN))
    return np.concatenate([said_NSC & true_NSC, said_NSC, true_NSC], axis=-1).astype(np.float64)


def _label_numbers(systems: Sequence[Sequence[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """What was said and what is true, each [S, N], as numbers of the C label words that occur, and C.

    What is no label word is -1.
    """
    words = sorted({word for system in systems for pair in system for word in pair if word is not None})
    number = {word: place for place, word in enumerate(words)} | {None: -1}
    said_SN = np.array([[number[said] for said, _ in system] for system in systems])
    true_SN = np.array([[number[true] for _, true in system] for system in systems])
    return said_SN, true_SN, len(words)


def _scores(metric: Metric, means_xSF: NDArray[np.float64]) -> NDArray[np.float64]:
    """The score of each system from the mean of its examples' numbers: [..., S]."""
    return _KINDS[metric].score(means_xSF)


def _mean_itself(means_xSF: NDArray[np.float64]) -> NDArray[np.float64]:
    return means_xSF[..., 0]


def _macro_f1(means_xSF: NDArray[np.float64]) -> NDArray[np.float64]:
    right_xSC, said_xSC, true_xSC = np.split(means_xSF, 3, axis=-1)
    occurs_xSC = said_xSC + true_xSC > 0
    f1_xSC = 2 * right_xSC / np.where(occurs_xSC, said_xSC + true_xSC, 1)
    return f1_xSC.sum(-1) / occurs_xSC.sum(-1)


class _Kind(NamedTuple):
    """What a metric is made of.

    Attributes:
        outcome: what it sees of a row of predictions.parquet.
        numbers: what each example gives for each system: [N, S, F].
        score: of the mean of these numbers; [..., S, F] gives [..., S].
        gradient: of the score by that mean, [S, F] of [S, F]; None: it is the mean itself.
    """

    outcome: Callable[[Mapping[str, Any]], Outcome]
    numbers: Callable[[Sequence[Sequence[Any]]], NDArray[np.float64]]
    score: Callable[[NDArray[np.float64]], NDArray[np.float64]] = _mean_itself
    gradient: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None


def _match(record: Mapping[str, Any]) -> Outcome:
    return bool(record["exact_match"])


def _words(record: Mapping[str, Any]) -> Outcome:
    return record["prediction"], record["label"]


_KINDS: Mapping[str, _Kind] = {
    "accuracy": _Kind(_words, _right_words),
    "macro_f1": _Kind(_words, _right_said_true, _macro_f1, _macro_f1_gradient),
    "exact_match": _Kind(_match, _matches),
}
assert _KINDS.keys() == set(get_args(Metric)), "a metric is named in Metric, and made here"
OF_WORDS = tuple(metric for metric in get_args(Metric) if _KINDS[metric].outcome is _words)
"""The metrics of what is answered by label words."""


def _resampled(
    metric: Metric, systems: Sequence[Sequence[Outcome]], clusters: Sequence[int], seed: int
) -> NDArray[np.float64]:
    """Scores of all systems on the same resampled clusters of examples, [R, S].

    Drawing K clusters with replacement is drawing how often each distinct one comes up: the same distribution,
    without R x K indices.
    """
    numbers_NSF = _numbers(metric, systems)
    names_K, of_N = np.unique(np.array(clusters), return_inverse=True)
    sums_KSF, sizes_K = np.zeros((len(names_K), *numbers_NSF.shape[1:])), np.bincount(of_N)
    np.add.at(sums_KSF, of_N, numbers_NSF)
    flat_Kx = np.column_stack([sizes_K, sums_KSF.reshape(len(names_K), -1)])
    distinct_Vx, counts_V = np.unique(flat_Kx, axis=0, return_counts=True)
    generator, drawn = np.random.default_rng(seed), []
    for some in np.array_split(np.arange(RESAMPLES), -(-RESAMPLES * len(counts_V) // _AT_ONCE)):
        drawn_rV = generator.multinomial(len(names_K), counts_V / len(names_K), size=len(some))
        drawn.append(drawn_rV @ distinct_Vx)
    drawn_Rx = np.concatenate(drawn)
    return _scores(metric, (drawn_Rx[:, 1:] / drawn_Rx[:, :1]).reshape(-1, *numbers_NSF.shape[1:]))
