"""What the differences from lora say over languages: their mean, and how likely each method is the best of all.

Legend: M methods, S seeds, N rows, D draws.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from flare_ds.markdown import DASH, table
from flare_ds.reporting.differences import Comparison, interval
from flare_ds.reporting.groups import REFERENCE
from flare_ds.scoring.metrics import contributions
from flare_ds.scoring.sureness import over_drawn_languages, over_languages

DRAWS = 4000
_COLUMNS = ("task", "base", "method", "languages", f"mean − {REFERENCE}", "in these", "in ones like these", "first")
_NOTE = (
    "in these: the 95 % interval of the mean over just these languages, for other seeds and rows. in ones like these: "
    "the same if the languages, too, were drawn from such (Student's t over their differences). first: how often the "
    "method has the best mean score of those in this table and lora, when seeds and rows are drawn anew; with few "
    "seeds it is too sure of itself."
)


def over_languages_table(found: Sequence[Comparison]) -> str:
    """A line for each method that meets lora in several languages; empty where none does.

    Raises:
        DataError: a run's files are damaged.
    """
    lines = [line for family in _families(found) for line in _lines(family)]
    if not lines:
        return ""
    return "\n\n".join(["## Over languages", table(_COLUMNS, lines), _NOTE])


def _families(found: Sequence[Comparison]) -> list[dict[str, dict[str, Comparison]]]:
    """For each task and base: the comparisons of each method, by language.

    A method that stands twice in a language (another rank, say) is left out: which of the two is meant nobody can say.
    """
    families: dict[tuple[str, str], dict[str, dict[str, Comparison]]] = {}
    twice = set()
    for comparison in found:
        config = comparison.group.runs[0].config
        about = (config.task.name, config.model.base)
        by_language = families.setdefault(about, {}).setdefault(comparison.group.method, {})
        if comparison.group.language in by_language or not comparison.comparable:
            twice.add((about, comparison.group.method))
        by_language[comparison.group.language] = comparison
    for about, method in twice:
        del families[about][method]
    several = [{name: of for name, of in family.items() if len(of) > 1} for family in families.values()]
    return [family for family in several if family]


def _lines(family: dict[str, dict[str, Comparison]]) -> Iterator[tuple[str, ...]]:
    widest = max(family.values(), key=len).keys()
    everywhere = {method: of for method, of in family.items() if of.keys() == widest}
    shares = _first([[of[language] for of in everywhere.values()] for language in widest])
    firsts = dict(zip(everywhere, shares[1:], strict=True))
    for method, by_language in family.items():
        parts = [comparison.sureness for comparison in by_language.values()]
        config = next(iter(by_language.values())).group.runs[0].config
        mean = over_languages(parts)
        yield (
            config.task.name,
            config.model.base.rstrip("/").rpartition("/")[2],
            method,
            ", ".join(by_language),
            f"{mean.mean:+.3f}",
            interval(mean),
            interval(over_drawn_languages([part.mean for part in parts])),
            f"{firsts[method]:.0%}" if method in firsts else DASH,
        )


def _first(by_language: Sequence[Sequence[Comparison]], seed: int = 0) -> NDArray[np.float64]:
    """How often lora, then each of the methods, has the best mean over languages: [1 + M]."""
    generator = np.random.default_rng(seed)
    scores_DM = sum(_drawn_scores(comparisons, generator) for comparisons in by_language)
    best_D = np.asarray(scores_DM).argmax(1)
    return np.bincount(best_D, minlength=1 + len(by_language[0])) / DRAWS


def _drawn_scores(comparisons: Sequence[Comparison], generator: np.random.Generator) -> NDArray[np.float64]:
    """Scores of lora and of the methods [D, 1 + M] on rows and seeds drawn anew: the same rows for all."""
    lora = comparisons[0].lora.finished
    rows = list(lora[0].outcomes)
    rows_DN = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=DRAWS) / len(rows)
    systems = [lora, *[[run for run, _ in comparison.pairs] for comparison in comparisons]]
    scores = []
    for runs in systems:
        metric = runs[0].metrics["metric"]
        values_SN = contributions(metric, [[run.outcomes[row] for row in rows] for run in runs])
        seeds_DS = generator.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=DRAWS) / len(runs)
        scores.append((rows_DN @ values_SN.T * seeds_DS).sum(1))
    return np.stack(scores, axis=1)
