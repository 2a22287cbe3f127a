"""How sure one may be of a mean over seeds and rows, when others of both could have been drawn.

Runs of S seeds are scored on the same N rows. What a row contributes is the sum of

    the mean   +   what its seed adds   +   what its row adds   +   what is left

and each of the last three varies on its own. In a table of S x N numbers their mean squares say how much (analysis of
variance of two crossed random factors), so the mean has the variance

    (MS_seed + MS_row - MS_left) / (S·N)

with Satterthwaite's degrees of freedom, and Student's t gives the interval. With one seed only the rows speak. Rows
that belong together (questions about one paragraph) are one draw: a *cluster* counts as one row.

A metric that is no mean over rows is linearised: a row contributes the score plus its influence on it. The mean of
that is the score itself.

    Clark, The language-as-fixed-effect fallacy (1973); Satterthwaite, Approximate distribution of estimates of
    variance components (1946); Miller, Adding error bars to evals (arXiv 2411.00640), for clusters.

Legend: S seeds, L languages, N rows, U rows of all languages, C clusters, F numbers a row gives (see
`flare_ds.scoring.metrics`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student

from flare_ds.scoring.metrics import LEVEL

POWER = 0.8
_SAME = 1e-12
"""Numbers that differ by less do so by rounding."""


@dataclass(frozen=True)
class Sureness:
    """A mean, and how far it may be from what other draws would give.

    Attributes:
        mean: it.
        error: its standard error.
        freedom: degrees of freedom of the error; 0: there is too little to tell one.
    """

    mean: float
    error: float
    freedom: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval; with too little to tell one, everything."""
        half = float(student.ppf((1 + LEVEL) / 2, self.freedom)) * self.error if self.freedom else float("inf")
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """The two-sided probability of a mean so far from zero if it were zero."""
        if self.freedom == 0:
            return 1.0
        if self.error == 0:
            return float(self.mean == 0)
        return float(2 * student.sf(abs(self.mean) / self.error, self.freedom))

    @property
    def findable(self) -> float:
        """The smallest true mean whose interval would lie beyond zero in 80 % of such experiments."""
        if self.freedom == 0:
            return float("inf")
        bound = student.ppf((1 + LEVEL) / 2, self.freedom)
        # Around a true mean, mean / error is Student's t that is not central.
        errors = brentq(lambda true: nct.sf(bound, self.freedom, true) - POWER, 0, 4 * bound, xtol=1e-6)
        return float(errors) * self.error


def over_seeds_and_rows(values_SN: NDArray[np.float64], clusters_N: ArrayLike | None = None) -> Sureness:
    """Sureness of the mean when seeds and rows are both drawn; with one seed, of rows alone.

    Without clusters each row is one.
    """
    values_SC = values_SN if clusters_N is None else of_clusters(values_SN, clusters_N)
    seeds, clusters = values_SC.shape
    mean = float(values_SC.mean())
    if clusters == 1:
        return Sureness(mean, 0.0, 0)
    of_seed_S, of_row_C = values_SC.mean(1), values_SC.mean(0)
    ms_row = seeds * of_row_C.var(ddof=1)
    if np.ptp(values_SC) < _SAME:  # what is drawn next may be the first that differs
        return Sureness(mean, 0.0, 0)
    if seeds == 1:
        return Sureness(mean, float(np.sqrt(ms_row / clusters)), clusters - 1)
    ms_seed = clusters * of_seed_S.var(ddof=1)
    left_SC = values_SC - of_seed_S[:, None] - of_row_C + mean
    ms_left = np.square(left_SC).sum() / ((seeds - 1) * (clusters - 1))
    # A variance is at least what either factor alone makes of it, whatever the estimate of the rest says.
    total = max(ms_seed + ms_row - ms_left, ms_seed, ms_row)
    if total == 0:
        return Sureness(mean, 0.0, 0)
    parts = [(ms_seed, seeds - 1), (ms_row, clusters - 1), (ms_left, (seeds - 1) * (clusters - 1))]
    freedom = float(total**2 / sum(ms**2 / of for ms, of in parts))
    # Of a few rows that cancel each other out: nothing can be told, and Student's t has no bounds that a float holds.
    return Sureness(mean, float(np.sqrt(total / (seeds * clusters))), freedom if freedom >= 0.5 else 0)


def over_seeds(values_SN: NDArray[np.float64]) -> Sureness:
    """Sureness of the mean when seeds are drawn and the rows are these: Student's t over the seeds' means."""
    means_S = values_SN.mean(1)
    if np.ptp(means_S) < _SAME:  # of one seed, too
        return Sureness(float(means_S[0]), 0.0, 0)
    return Sureness(float(means_S.mean()), float(means_S.std(ddof=1) / np.sqrt(len(means_S))), len(means_S) - 1)


def of_languages(
    values: Sequence[NDArray[np.float64]], rows: Sequence[Sequence[str]], clusters: Mapping[str, int]
) -> NDArray[np.float64]:
    """What each row of L languages contributes to the mean over just these: [S, U], in the order of `clusters`.

    A row that several languages have, in translation, is one draw, and so is a seed: it begins alike in all of them, so
    its luck may be the same. With U rows in all, N of them in a language, a row
    contributes the mean over languages plus, for each that has it, its distance there from that language's mean, times
    U / (N·L): the mean of that is the mean over languages, its spread that of their sum.

    Args:
        values: of each language, what each row contributes under each seed: [S, N], equally many seeds everywhere.
        rows: of each language, the ids of its rows.
        clusters: of each of the U rows, its cluster.
    """
    place = {row: number for number, row in enumerate(clusters)}
    means_LS = np.array([values_SN.mean(1) for values_SN in values])
    values_SU = np.tile(means_LS.mean(0)[:, None], len(place))
    for values_SN, names in zip(values, rows, strict=True):
        weight = len(place) / (len(names) * len(values))
        values_SU[:, [place[name] for name in names]] += weight * (values_SN - values_SN.mean(1, keepdims=True))
    return values_SU


def over_drawn_languages(means_L: Sequence[float], in_these: Sureness) -> Sureness:
    """Sureness of the mean over languages like these, if these were drawn from such.

    A seed or a row in translation moves the means of all languages alike, which their spread does not show. So what
    may move the mean over just these is added to it, and Satterthwaite's freedom is that of both.

    Args:
        means_L: of each language.
        in_these: of their mean, for other seeds and rows in just these languages.
    """
    if in_these.freedom == 0:
        return in_these
    of_languages = float(np.var(means_L, ddof=1)) / len(means_L)
    total = in_these.error**2 + of_languages
    freedom = total**2 / (in_these.error**4 / in_these.freedom + of_languages**2 / (len(means_L) - 1))
    return Sureness(in_these.mean, total**0.5, freedom)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction: each p as it counts among all of them, in the order given.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    corrected, largest = [0.0] * len(ps), 0.0
    for place, number in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[number]))
        corrected[number] = largest
    return corrected


def of_clusters(values_SN: NDArray[np.float64], clusters_N: ArrayLike) -> NDArray[np.float64]:
    """What each cluster contributes [S, C]; large ones more, so that the mean stays the mean over rows."""
    names_C, of_N = np.unique(np.array(clusters_N), return_inverse=True)
    means_S1 = values_SN.mean(1, keepdims=True)
    sums_SC = np.zeros((len(values_SN), len(names_C)))
    np.add.at(sums_SC.T, of_N, (values_SN - means_S1).T)
    return means_S1 + sums_SC * len(names_C) / values_SN.shape[1]
