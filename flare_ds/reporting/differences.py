"""Each method against lora, on the same test rows, over the seeds that both have; then over languages.

A method that trains nothing meets lora of every seed: it is the same system each time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flare_ds.markdown import DASH, table
from flare_ds.reporting.groups import REFERENCE, Group, clusters_of, outcomes_of, references, same_test, seeds
from flare_ds.runs import RunResult
from flare_ds.scoring.metrics import contributions
from flare_ds.scoring.sureness import Sureness, holm, over_seeds, over_seeds_and_rows

FEW = 5
"""With fewer seeds than that, what the seeds say for themselves stands beside the interval."""
_COLUMNS = (
    "language",
    "method",
    "seeds",
    f"method − {REFERENCE}",
    "by seed",
    "95 % interval",
    "by the seeds alone",
    "p (Holm)",
    "findable",
)
_NOTE = (
    "Intervals are for other test rows and, where there are several seeds, for other seeds too (analysis of variance, "
    f"Student's t). With fewer than {FEW} seeds, `by the seeds alone` is Student's t over their differences on these "
    "very rows: where it is much wider, trust it. With one seed nothing is known of another. p counts among all lines "
    "of this table (Holm). findable: the smallest true difference that such an experiment finds four times in five; "
    "a smaller one, seen or not, is not shown to be there or to be missing."
)
_UNLIKE = "scored on different test rows or by other metrics"


@dataclass(frozen=True)
class Comparison:
    """A group and the lora it is measured against.

    Attributes:
        group: of the method.
        lora: of the reference, in the same setting.
        pairs: their runs of the same seed.
    """

    group: Group
    lora: Group
    pairs: Sequence[tuple[RunResult, RunResult]]

    @cached_property
    def comparable(self) -> bool:
        """Whether all of it was scored on the same rows in the same way."""
        first = self.pairs[0][0]
        return all(same_test(run, first) for pair in self.pairs for run in pair)

    @cached_property
    def differences_SN(self) -> NDArray[np.float64]:
        """What each row contributes to the difference, under each seed."""
        runs, loras = zip(*self.pairs, strict=True)
        both = contributions(runs[0].metrics["metric"], outcomes_of([*runs, *loras]))
        return both[: len(runs)] - both[len(runs) :]

    @cached_property
    def sureness(self) -> Sureness:
        """Of the difference, over seeds and rows."""
        return over_seeds_and_rows(self.differences_SN, self.clusters_N)

    @cached_property
    def rows(self) -> list[str]:
        """The ids of the rows, in their order."""
        return list(self.pairs[0][0].outcomes)

    @cached_property
    def clusters_N(self) -> list[int]:
        """The cluster of each row."""
        return clusters_of(self.pairs[0][0])


def comparisons(groups: Sequence[Group]) -> list[Comparison]:
    """Every method with lora, wherever they stand in one setting and share a seed."""
    found = [
        Comparison(group, lora, _pairs(group, lora))
        for group in groups
        if group.method not in (REFERENCE, "task adapter")
        for lora in references(group, groups)
    ]
    return [comparison for comparison in found if comparison.pairs]


def _pairs(group: Group, lora: Group) -> list[tuple[RunResult, RunResult]]:
    by_seed = {run.config.train.seed: run for run in group.finished}
    untrained = group.finished[0] if group.finished and not group.trains else None
    partners = [(untrained or by_seed.get(run.config.train.seed), run) for run in lora.finished]
    return [(run, other) for run, other in partners if run is not None]


def differences(found: Sequence[Comparison]) -> str:
    """The table of all comparisons; empty where there is none.

    Raises:
        DataError: a run's files are damaged.
    """
    if not found:
        return ""
    able = [comparison for comparison in found if comparison.comparable]
    ps = dict(zip(map(id, able), holm([comparison.sureness.p for comparison in able]), strict=True))
    lines = [_line(comparison, ps.get(id(comparison))) for comparison in found]
    return "\n\n".join([f"## Against {REFERENCE}, on the same test rows", table(_COLUMNS, lines), _NOTE])


def _line(comparison: Comparison, p: float | None) -> tuple[str, ...]:
    group = comparison.group
    about = (group.language, group.method, seeds([lora for _, lora in comparison.pairs]))
    if p is None:
        return (*about, _UNLIKE, *[DASH] * 5)
    sureness, by_seed_S = comparison.sureness, comparison.differences_SN.mean(1)
    few = 1 < len(by_seed_S) < FEW
    return (
        *about,
        f"{sureness.mean:+.3f}",
        " ".join(f"{one:+.3f}" for one in by_seed_S) if len(by_seed_S) > 1 else DASH,
        interval(sureness),
        interval(over_seeds(comparison.differences_SN)) if few else DASH,
        f"{p:.2g}",
        DASH if sureness.freedom == 0 else f"{sureness.findable:.3f}",
    )


def interval(sureness: Sureness) -> str:
    """Its bounds, in words; a dash where there is too little to tell them."""
    lo, hi = sureness.interval
    return DASH if sureness.freedom == 0 else f"{lo:+.3f} to {hi:+.3f}"
