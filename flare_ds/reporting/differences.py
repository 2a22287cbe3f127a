"""Each method against lora, on the same test rows, over the seeds that both have; then over languages.

A method that trains nothing meets lora of every seed: it is the same system each time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flare_ds.markdown import DASH, table
from flare_ds.reporting.groups import (
    ABOUT,
    REFERENCE,
    Group,
    clusters_of,
    is_parallel,
    outcomes_of,
    references,
    same_test,
    seeds,
)
from flare_ds.runs import RunResult
from flare_ds.scoring.metrics import contributions
from flare_ds.scoring.sureness import Sureness, holm, over_seeds, over_seeds_and_rows

FEW = 5
"""With fewer seeds than that, what the seeds say for themselves stands beside the interval."""
_COLUMNS = (
    *ABOUT,
    "seeds",
    f"method − {REFERENCE}",
    "by seed",
    "95 % interval",
    "by the seeds alone",
    "findable",
    "p (Holm)",
)
_NOTE = (
    "The 95 % intervals cover other test rows and, where there are several seeds, other seeds too (analysis of "
    "variance, Student's t). They hold for this very base: how a base tuned anew would differ is not included. "
    f"With fewer than {FEW} seeds, `by the seeds alone` is Student's t over the seeds' differences on these very rows; "
    "where it is much wider, trust it instead. One seed says nothing about other seeds. p is corrected for all lines "
    "of this table (Holm). findable: the smallest true difference that such an experiment detects four times in five "
    "(80 % power). Smaller ones are often missed, so an interval that contains 0 does not show that there is no "
    "difference. findable refers to the interval; p, corrected for many lines, detects such a difference less often."
)
UNLIKE = "scored on different test rows or by other metrics"


@dataclass(frozen=True)
class Comparison:
    """A group and the lora it is measured against.

    Attributes:
        group: of the method.
        lora: of the reference, in the same setting.
        pairs: their runs of the same seed.
        name: task, base, language and method, with the lora if there are several, and whether it is set otherwise.
    """

    group: Group
    lora: Group
    pairs: Sequence[tuple[RunResult, RunResult]]
    name: tuple[str, str, str, str]

    @property
    def seeds(self) -> list[int]:
        """Those that both have."""
        return [lora.config.train.seed for _, lora in self.pairs]

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
        """The ids of the rows, in their order; where languages have other rows, they have other ids."""
        run = self.pairs[0][0]
        return list(run.outcomes) if is_parallel(run) else [f"{self.group.language} {row}" for row in run.outcomes]

    @cached_property
    def clusters_N(self) -> NDArray[np.int64]:
        """The cluster of each row."""
        return clusters_of([run for pair in self.pairs for run in pair])


def comparisons(groups: Sequence[Group]) -> list[Comparison]:
    """Every method with lora, wherever they stand in one setting and share a seed."""
    return [comparison for of_group in _meetings(groups) for comparison in of_group if comparison.pairs]


def seeds_apart(groups: Sequence[Group]) -> list[str]:
    """A sentence for each method that is scored, as its lora is, but shares no seed with it."""
    return [
        f"Left out: {' '.join(met[0].group.name)}; it has no seed in common with {REFERENCE} "
        f"({seeds(met[0].group.finished)} against {' or '.join(seeds(one.lora.finished) for one in met)})."
        for of_group in _meetings(groups)
        if (met := [one for one in of_group if one.group.finished and one.lora.finished])
        and not any(one.pairs for one in met)
    ]


def _meetings(groups: Sequence[Group]) -> Iterator[list[Comparison]]:
    """Of each method those with every lora that stands in its setting, whether they share a seed or not."""
    for group in groups:
        loras = references(group, groups) if group.method not in (REFERENCE, "task adapter") else []
        yield [Comparison(group, lora, _pairs(group, lora), _name(group, lora, loras)) for lora in loras]


def _name(group: Group, lora: Group, loras: Sequence[Group]) -> tuple[str, str, str, str]:
    task, base, language, said = group.name
    said = said if len(loras) == 1 else f"{said} against {lora.name[-1]}"
    said = said if group.is_set_as(lora) else f"{said}, set otherwise"
    return task, base, language, said if group.reads_as(lora) else f"{said}, on other rows"


def _pairs(group: Group, lora: Group) -> list[tuple[RunResult, RunResult]]:
    by_seed = {run.config.train.seed: run for run in group.finished}
    untrained = group.finished[0] if group.finished and not group.trains else None
    partners = [(untrained or by_seed.get(run.config.train.seed), run) for run in lora.finished]
    return [(run, other) for run, other in partners if run is not None]


def differences(found: Sequence[Comparison], left_out: Sequence[str]) -> str:
    """The table of all `comparisons`, and what is not in it (`seeds_apart`); empty where there is neither.

    Raises:
        DataError: a run's files are damaged.
    """
    parts = [*([_table(found), _NOTE] if found else []), *left_out]
    return "\n\n".join([f"## Against {REFERENCE}, on the same test rows", *parts]) if parts else ""


def _table(found: Sequence[Comparison]) -> str:
    able = [comparison for comparison in found if comparison.comparable]
    ps = dict(zip(map(id, able), holm([comparison.sureness.p for comparison in able]), strict=True))
    return table(_COLUMNS, [_line(comparison, ps.get(id(comparison))) for comparison in found])


def _line(comparison: Comparison, p: float | None) -> tuple[str, ...]:
    about = (*comparison.name, seeds([lora for _, lora in comparison.pairs]))
    if p is None:
        return (*about, UNLIKE, *[DASH] * 5)
    by_seed = [f"{one:+z.3f}" for one in comparison.differences_SN.mean(1)]
    return (
        *about,
        f"{comparison.sureness.mean:+z.3f}",
        " ".join(by_seed) if len(by_seed) > 1 else DASH,
        *known(comparison.differences_SN, comparison.sureness),
        f"{p:.2g}",
    )


def known(values_SN: NDArray[np.float64], sureness: Sureness) -> tuple[str, str, str]:
    """What may be claimed of a mean: its interval, that by the seeds alone where they are few, and what is findable."""
    alone = interval(over_seeds(values_SN)) if len(values_SN) < FEW else DASH
    return interval(sureness), alone, DASH if sureness.freedom == 0 else f"{sureness.findable:.3f}"


def interval(sureness: Sureness) -> str:
    """Its bounds, in words; a dash where there is too little to tell them."""
    lo, hi = sureness.interval
    return DASH if sureness.freedom == 0 else f"{lo:+z.3f} to {hi:+z.3f}"
