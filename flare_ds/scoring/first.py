"""How likely each of several systems is the best of them, if other seeds and rows had been drawn.

The means of all systems are drawn anew, on the same seeds and rows for all: for the rows from a normal distribution
with the covariance of what clusters of rows give the systems, for the seeds from Student's t (multivariate, S - 1
degrees of freedom) with the covariance of what the seeds give them. A bootstrap of a few seeds would have (S - 1) / S
of their variance and no t. What is left after seeds and rows is in both, so this errs towards doubt.

Legend: M systems, S seeds, N rows, X draws of one kind (seeds, or clusters of rows), D draws anew.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flare_ds.scoring.sureness import of_clusters

DRAWS = 10_000


def firsts(values: Sequence[NDArray[np.float64]], clusters_N: ArrayLike) -> NDArray[np.float64]:
    """How often each system has the best mean: [M].

    Args:
        values: of each system, what each row contributes under each of the same two or more seeds: [S, N].
        clusters_N: the cluster of each row, of which there are two or more.
    """
    generator, freedom = np.random.default_rng(0), len(values[0]) - 1
    by_seed_MS = np.array([values_SN.mean(1) for values_SN in values])
    by_cluster_MC = np.array([of_clusters(values_SN.mean(0)[None], clusters_N)[0] for values_SN in values])
    shrunk_D1 = np.sqrt(generator.chisquare(freedom, size=(DRAWS, 1)) / freedom)
    drawn_DM = _moves(by_cluster_MC, generator) + _moves(by_seed_MS, generator) / shrunk_D1
    return np.bincount((by_seed_MS.mean(1) + drawn_DM).argmax(1), minlength=len(values)) / DRAWS


def _moves(values_MX: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """How far other draws would move the means of all systems: [D, M]."""
    systems, draws = values_MX.shape
    return generator.multivariate_normal(np.zeros(systems), np.cov(values_MX) / draws, size=DRAWS)
