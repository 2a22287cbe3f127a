"""What the predictions on held-out rows say, and how sure of it one may be.

Intervals are 95 % percentile bootstraps over examples: the test rows are the sample, the training seed is not. They
say how far the score would move with other test rows, not with another seed. All rows right (or wrong) gives an
interval of no width.

Shape suffixes: N examples, R resamples, V distinct values, C classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a − b over the same examples, with its 95 % confidence interval."""

    mean: float
    lo: float
    hi: float


def accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Share of the N predictions (words or indices) that equal their label."""
    predictions_N, labels_N = _paired(predictions, labels)
    return float(np.mean(predictions_N == labels_N))


def macro_f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Mean F1 over the classes that occur among the N predictions or labels; a class never right counts 0."""
    predictions_N, labels_N = _paired(predictions, labels)
    classes_C = np.unique(np.concatenate([predictions_N, labels_N]))
    predicted_CN = predictions_N == classes_C[:, None]
    labelled_CN = labels_N == classes_C[:, None]
    hits_C = (predicted_CN & labelled_CN).sum(axis=1)
    return float(np.mean(2 * hits_C / (predicted_CN.sum(axis=1) + labelled_CN.sum(axis=1))))


def confidence_interval(correct: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """Bounds of the mean of `correct` [N]: booleans, or each example's mean over several training seeds."""
    lo, hi = np.quantile(_bootstrap_means(np.asarray(correct, dtype=np.float64), seed), _TAILS)
    return float(lo), float(hi)


def paired_difference(correct_a: ArrayLike, correct_b: ArrayLike, seed: int = 0) -> PairedDifference:
    """Compare two systems on the same examples, in the same order.

    Args:
        correct_a: [N] booleans, or means over training seeds.
        correct_b: [N] the same for the other system.
        seed: of the bootstrap.
    """
    a_N, b_N = _paired(correct_a, correct_b)
    difference_N = a_N.astype(np.float64) - b_N.astype(np.float64)
    lo, hi = confidence_interval(difference_N, seed)
    return PairedDifference(float(difference_N.mean()), lo, hi)


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[NDArray, NDArray]:
    a_N, b_N = np.asarray(a), np.asarray(b)
    assert a_N.ndim == 1 and a_N.shape == b_N.shape and a_N.size > 0, (a_N.shape, b_N.shape)
    return a_N, b_N


def _bootstrap_means(values_N: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means of resampled examples, [R].

    Drawing N examples with replacement is drawing how often each distinct value comes up: the same distribution,
    without N x R indices.
    """
    distinct_V, counts_V = np.unique(values_N, return_counts=True)
    drawn_RV = np.random.default_rng(seed).multinomial(values_N.size, counts_V / values_N.size, size=RESAMPLES)
    return drawn_RV @ distinct_V / values_N.size
