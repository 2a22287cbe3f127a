"""The tables of a study: what each variant reached on the validation rows, and by how much it differs from another.

A change is the mean, over the seeds that both variants have, of the difference under the same seed, which draws the
same rows in the same order. Two or three seeds say little about their own spread, so that of the differences under
one seed is estimated from all comparisons of the study together; ± is the standard error of the mean that follows.
"""

import math
import statistics
from collections.abc import Callable, Sequence

from study import Question, Study, is_trained

from flare_ds import markdown
from flare_ds.runs import RunResult

COLUMNS = ("variant", "settings", "seeds", "score", "change", "loss", "change", "step time", "trained parameters")
Measure = Callable[[RunResult], float]
Spreads = dict[Measure, float | None]


def tables(study: Study) -> str:
    """All tables, as Markdown."""
    trained = [run for run in study.runs.values() if is_trained(run)]
    hours = sum(run.training["train_seconds"] for run in trained) / 3600
    spreads: Spreads = {measure: spread(study, measure) for measure in (score, loss)}
    head = f"{len(trained)} of {len(study.runs)} runs are trained; their steps took {hours:.1f} hours."
    parts = [head, *(table(study, question, spreads) for question in study.file.questions)]
    return "\n\n".join(parts) + "\n"


def table(study: Study, question: Question, spreads: Spreads) -> str:
    """One question."""
    lines = [line(study, question, variant, spreads) for variant in question.variants]
    return f"### {question.title}\n\nChanges are against `{question.against}`.\n\n{markdown.table(COLUMNS, lines)}"


def line(study: Study, question: Question, variant: str, spreads: Spreads) -> list[str]:
    """One variant."""
    runs = study.finished(variant, question.seeds)
    settings = study.file.variants[variant]
    cells = [variant, f"`{settings}`" if settings else markdown.DASH, seeds_of(study, question, variant)]
    if not runs:
        return [*cells, *[markdown.DASH] * (len(COLUMNS) - len(cells))]
    for measure in (score, loss):
        cells.append(f"{statistics.mean(map(measure, runs.values())):.3f}")
        cells.append(change(differences(study, variant, question.against, question.seeds, measure), spreads[measure]))
    seconds = statistics.mean(run.training["median_step_seconds"] for run in runs.values())
    parameters = {run.training["trained_parameters"] for run in runs.values()}
    return [*cells, f"{seconds:.2f} s", ", ".join(f"{count:,}" for count in parameters)]


def seeds_of(study: Study, question: Question, variant: str) -> str:
    """The seeds a variant is trained with, and how far the others came."""
    trained = study.finished(variant, question.seeds)
    unfinished = [f"{seed} {study.runs[variant, seed].progress}" for seed in question.seeds if seed not in trained]
    parts = [", ".join(map(str, trained)), "unfinished: " + ", ".join(unfinished) if unfinished else ""]
    return "; ".join(part for part in parts if part)


def score(run: RunResult) -> float:
    """The best validation score."""
    return run.training["best_validation_score"]


def loss(run: RunResult) -> float:
    """The validation loss of the adapter with the best score."""
    best = run.training["best_step"]
    return next(line["validation_loss"] for line in run.train_log if line["step"] == best and "validation_loss" in line)


def differences(study: Study, variant: str, against: str, seeds: Sequence[int], measure: Measure) -> list[float]:
    """Variant minus what it is compared with, for each of some seeds that both are trained with."""
    if variant == against:
        return []
    ours, others = (study.finished(name, seeds) for name in (variant, against))
    return [measure(ours[seed]) - measure(others[seed]) for seed in ours if seed in others]


def spread(study: Study, measure: Measure) -> float | None:
    """The standard deviation of a difference under one seed, from all comparisons; None: no comparison has two."""
    squares, freedom = 0.0, 0
    seeds: dict[tuple[str, str], set[int]] = {}
    for question in study.file.questions:
        for variant in question.variants:
            seeds.setdefault((variant, question.against), set()).update(question.seeds)
    for (variant, against), of_both in seeds.items():
        found = differences(study, variant, against, sorted(of_both), measure)
        if len(found) > 1:
            squares += statistics.variance(found) * (len(found) - 1)
            freedom += len(found) - 1
    return math.sqrt(squares / freedom) if freedom else None


def change(found: list[float], deviation: float | None) -> str:
    """The mean of some differences and, where it can be told, its standard error."""
    if not found:
        return markdown.DASH
    error = "" if deviation is None else f" ± {deviation / math.sqrt(len(found)):.3f}"
    return f"{statistics.mean(found):+.3f}{error}"
