"""What the differences from lora say over languages: their mean, and how likely each method is the best of all.

Legend: M methods, S seeds, N rows, C clusters of rows, D draws.
"""

from collections.abc import Iterator, Mapping, Sequence

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
    "in these: the 95 % interval of the mean over just these languages, for other seeds and rows; a row that several "
    "languages have in translation is one draw, as is a seed. in ones like these: "
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
        compared = list(by_language.values())
        config, means = compared[0].group.runs[0].config, [one.sureness.mean for one in compared]
        yield (
            config.task.name,
            config.model.base.rstrip("/").rpartition("/")[2],
            method,
            ", ".join(by_language),
            f"{np.mean(means):+.3f}",
            _in_these(compared),
            interval(over_drawn_languages(means)),
            f"{firsts[method]:.0%}" if method in firsts else DASH,
        )


def _in_these(compared: Sequence[Comparison]) -> str:
    """The interval over just these languages; a dash where they do not have the same seeds."""
    seeds = [[lora.config.train.seed for _, lora in one.pairs] for one in compared]
    if any(of != seeds[0] for of in seeds):
        return DASH
    values, rows = [one.differences_SN for one in compared], [one.rows for one in compared]
    return interval(over_languages(values, rows, _clusters(compared)))


def _clusters(compared: Sequence[Comparison]) -> dict[str, int]:
    """The cluster of each row that any of the languages has: the first one's, where several have it."""
    pairs = [pair for one in reversed(compared) for pair in zip(one.rows, one.clusters_N, strict=True)]
    return dict(pairs)


def _first(by_language: Sequence[Sequence[Comparison]], seed: int = 0) -> NDArray[np.float64]:
    """How often lora, then each of the methods, has the best mean over languages: [1 + M]."""
    generator = np.random.default_rng(seed)
    clusters = _clusters([first for first, *_ in by_language])
    names, of_row = np.unique(list(clusters.values()), return_inverse=True)
    drawn_DC = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    place = dict(zip(clusters, of_row.tolist(), strict=True))
    scores_DM = sum(_drawn_scores(compared, drawn_DC, place, generator) for compared in by_language)
    best_D = np.asarray(scores_DM).argmax(1)
    return np.bincount(best_D, minlength=1 + len(by_language[0])) / DRAWS


def _drawn_scores(
    compared: Sequence[Comparison],
    drawn_DC: NDArray[np.int64],
    place: Mapping[str, int],
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Scores of lora and of the methods in a language [D, 1 + M], on rows and seeds drawn anew: the same rows for all.

    Args:
        compared: each method there.
        drawn_DC: how often each cluster of rows was drawn.
        place: the cluster of each row.
        generator: that draws seeds.
    """
    lora, rows = compared[0].lora.finished, compared[0].rows
    weights_DN = drawn_DC[:, [place[row] for row in rows]].astype(np.float64)
    weights_DN /= np.maximum(weights_DN.sum(1, keepdims=True), 1)
    scores = []
    for runs in [lora, *[[run for run, _ in one.pairs] for one in compared]]:
        metric = runs[0].metrics["metric"]
        values_SN = contributions(metric, [[run.outcomes[row] for row in rows] for run in runs])
        seeds_DS = generator.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=DRAWS) / len(runs)
        scores.append((weights_DN @ values_SN.T * seeds_DS).sum(1))
    return np.stack(scores, axis=1)
