"""What the differences from lora say over languages: their mean, and how likely each method is the best of all.

Legend: S seeds, U rows of all languages.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from flare_ds.markdown import DASH, table
from flare_ds.reporting.differences import FEW, UNLIKE, Comparison, interval, known
from flare_ds.reporting.groups import REFERENCE
from flare_ds.scoring.first import firsts
from flare_ds.scoring.sureness import of_languages, over_drawn_languages, over_seeds_and_rows

_COLUMNS = (
    "task",
    "base",
    "method",
    "languages",
    f"mean − {REFERENCE}",
    "in these",
    "by the seeds alone",
    "findable",
    "in ones like these",
    "first",
)
_NOTE = (
    "in these: the 95 % interval of the mean over exactly these languages, for other seeds and rows; rows that are "
    "translations of one another count as one draw, and so does a seed. by the seeds alone, findable: as above, for "
    "this mean. in ones like these: the interval if the languages, too, were a random draw from similar ones; effects "
    "of seeds and rows that the languages share are included. first: the probability that the method has the best "
    "mean score among lora and the methods here that cover the most languages, if seeds and rows were drawn again; a "
    "method that lacks one of those languages has a dash and does not compete. All are dashes unless all of these have "
    f"{FEW} seeds in common."
)
Family = dict[str, dict[str, Comparison]]
"""The comparisons of each kind of group in each language, of one task and base."""


def over_languages_table(found: Sequence[Comparison]) -> str:
    """A line for each method that meets lora in several languages; empty where none does.

    Raises:
        DataError: a run's files are damaged.
    """
    families, left_out = _families(found)
    lines = [line for family in families for line in _lines(family)]
    parts = [*([table(_COLUMNS, lines), _NOTE] if lines else []), *left_out]
    return "\n\n".join(["## Over languages", *parts]) if parts else ""


def _families(found: Sequence[Comparison]) -> tuple[list[Family], list[str]]:
    """For each task and base, what stands in several languages; and what is left out, and why.

    What meets several loras in a language is: which of them is meant nobody can say.
    """
    families: dict[tuple[str, str], Family] = {}
    unclear: dict[tuple[tuple[str, str], str], str] = {}
    for one in found:
        about, kind, language = one.group.setting[1:3], one.group.kind, one.group.language
        by_language = families.setdefault(about, {}).setdefault(kind, {})
        if language in by_language:
            unclear[about, kind] = f"it stands twice in {language}"
        elif not one.comparable:
            unclear[about, kind] = f"in {language} it was {UNLIKE}"
        by_language[language] = one
    left_out = []
    for (about, kind), why in unclear.items():
        of = families[about].pop(kind)
        if len(of) > 1:
            first = next(iter(of.values()))
            task, base, _, _ = first.name
            left_out.append(f"Left out: {task} {base} {first.group.label}; {why}.")
    several = [{name: of for name, of in family.items() if len(of) > 1} for family in families.values()]
    return [family for family in several if family], left_out


def _lines(family: Family) -> Iterator[tuple[str, ...]]:
    widest = max(family.values(), key=len).keys()
    best = _firsts({kind: list(of.values()) for kind, of in family.items() if of.keys() == widest})
    for kind, by_language in family.items():
        compared = list(by_language.values())
        task, base, _, _ = compared[0].name
        told = next((one.group for one in compared if one.group.place), compared[0].group)
        mean = np.mean([one.sureness.mean for one in compared])
        yield (
            *(task, base, told.label, ", ".join(by_language), f"{mean:+z.3f}"),
            *_intervals(compared),
            best.get(kind, DASH),
        )


def _intervals(compared: Sequence[Comparison]) -> tuple[str, str, str, str]:
    """What is known of the mean over just these languages, and over such; dashes where they have not the same seeds."""
    seeds, clusters = compared[0].seeds, _clusters(compared)
    if any(one.seeds != seeds for one in compared):
        return (DASH,) * 4
    values_SU = _together(compared, seeds, clusters)
    in_these = over_seeds_and_rows(values_SU, list(clusters.values()))
    in_such = over_drawn_languages([one.sureness.mean for one in compared], in_these)
    return *known(values_SU, in_these), interval(in_such)


def _firsts(kinds: dict[str, list[Comparison]]) -> dict[str, str]:
    """How likely each is the best of these and lora, by the seeds that all have; empty if they are too few."""
    of_first = next(iter(kinds.values()))
    seeds = set(of_first[0].seeds).intersection(*(one.seeds for compared in kinds.values() for one in compared))
    clusters = _clusters(of_first)
    several_loras = any(
        one.lora is not first.lora for compared in kinds.values() for one, first in zip(compared, of_first, strict=True)
    )
    if len(seeds) < FEW or several_loras or len(set(clusters.values())) == 1:
        return {}
    differences = [_together(compared, sorted(seeds), clusters) for compared in kinds.values()]
    _, *shares = firsts([np.zeros_like(differences[0]), *differences], list(clusters.values()))
    return {kind: f"{share:.0%}" for kind, share in zip(kinds, shares, strict=True)}


def _together(compared: Sequence[Comparison], seeds: Sequence[int], clusters: dict[str, int]) -> NDArray[np.float64]:
    """What each row of all languages contributes to the mean over them, under some of the seeds: [S, U]."""
    values = [one.differences_SN[[one.seeds.index(seed) for seed in seeds]] for one in compared]
    return of_languages(values, [one.rows for one in compared], clusters)


def _clusters(compared: Sequence[Comparison]) -> dict[str, int]:
    """The cluster of each row that any of the languages has: the first one's, where several have it."""
    pairs = [pair for one in reversed(compared) for pair in zip(one.rows, one.clusters_N, strict=True)]
    return dict(pairs)
