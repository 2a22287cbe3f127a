"""McNemar's exact test: whether two classifiers are right equally often, from the examples on which they disagree.

                b right    b wrong
a right            –        a only
a wrong          b only       –         under the null hypothesis each of these is a's with probability 1/2
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from flare_ds.scoring.metrics import Outcome


@dataclass(frozen=True)
class McNemar:
    """The test's result.

    Attributes:
        a_only: examples on which only a is right.
        b_only: examples on which only b is.
        p: the two-sided probability of so unequal a split, or a more unequal one.
    """

    a_only: int
    b_only: int
    p: float


def mcnemar(outcomes_a: Sequence[Outcome], outcomes_b: Sequence[Outcome]) -> McNemar:
    """Compare two systems on the same examples, in the same order."""
    pairs = [(_right(a), _right(b)) for a, b in zip(outcomes_a, outcomes_b, strict=True)]
    a_only, b_only = pairs.count((True, False)), pairs.count((False, True))
    disagree = a_only + b_only
    return McNemar(a_only, b_only, float(binomtest(a_only, disagree).pvalue) if disagree else 1.0)


def _right(outcome: Outcome) -> bool:
    return outcome if isinstance(outcome, bool) else outcome[0] == outcome[1]
