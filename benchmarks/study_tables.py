"""What the variants of a sweep reach on the validation rows, and by how much they differ: a table for each question.

    python benchmarks/study_tables.py SWEEP.yaml QUESTIONS.yaml [key=value ...]

QUESTIONS.yaml holds a list, `questions`, each with a title, some variants of the sweep, the one that they are compared
with (`against`) and the seeds. Nothing is run: the tables are of what is trained so far.

A change is the mean, over the seeds that both variants have, of the difference under the same seed, which draws the
same rows in the same order. Two or three seeds say little about their own spread, so that of the differences under
one seed is estimated from all comparisons of the study together; ± is the standard error of the mean that follows.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from flare_ds import markdown
from flare_ds.config.section import Section
from flare_ds.exceptions import ConfigError, FlareError
from flare_ds.failures import say
from flare_ds.nested_settings import flat
from flare_ds.runs import RunDirectory, RunResult
from flare_ds.sweep.grid import read_sweep
from flare_ds.sweep.plan import load_sweep
from flare_ds.yaml_file import read_yaml

COLUMNS = ("variant", "settings", "seeds", "score", "change", "loss", "change", "step time", "trained parameters")
Measure = Callable[[RunResult], float]
Spreads = dict[Measure, float | None]


class Question(Section):
    """One table."""

    title: str
    variants: list[str] = Field(min_length=1)
    against: str
    seeds: list[int] = Field(min_length=1)


@dataclass(frozen=True)
class Study:
    """A sweep, and what is asked of it.

    Attributes:
        settings: of each variant, in words.
        runs: every run, by variant and seed.
        questions: in their order.
    """

    settings: Mapping[str, str]
    runs: Mapping[tuple[str, int], RunResult]
    questions: Sequence[Question]

    def finished(self, variant: str, seeds: Sequence[int]) -> dict[int, RunResult]:
        """The runs of a variant that are trained, by seed."""
        return {seed: self.runs[variant, seed] for seed in seeds if is_trained(self.runs[variant, seed])}


def load_study(sweep: Path, questions: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a sweep and what is asked of it.

    Raises:
        ConfigError: a setting is wrong, or a question names a cell that the sweep has not, or has twice.
    """
    try:
        asked = TypeAdapter(list[Question]).validate_python(read_yaml(questions).get("questions"))
    except ValidationError as error:
        raise ConfigError(
            f"{questions} holds no questions: {error}", fix="see benchmarks/fusion_questions.yaml"
        ) from None
    runs: dict[tuple[str, int], RunResult] = {}
    for cell in load_sweep(sweep, overrides).cells:
        name = cell.method, cell.config.train.seed
        if name in runs:
            raise ConfigError(f"{sweep} has several cells of {name}", fix="ask of one language and one task")
        runs[name] = RunResult(cell.directory, cell.config)
    for question in asked:
        for name in ((v, seed) for v in (*question.variants, question.against) for seed in question.seeds):
            if name not in runs:
                raise ConfigError(f"{sweep} has no cell {name}", fix="add it to grid or grids, or correct the question")
    variants = read_sweep(sweep, overrides).variants
    said = {name: " ".join(f"{key}={value}" for key, value in flat(own).items()) for name, own in variants.items()}
    return Study(said, runs, asked)


def is_trained(run: RunResult) -> bool:
    """Whether its training is finished."""
    return RunDirectory(run.directory).trained


def tables(study: Study) -> str:
    """All tables, as Markdown."""
    trained = [run for run in study.runs.values() if is_trained(run)]
    hours = sum(run.training["train_seconds"] for run in trained) / 3600
    spreads: Spreads = {measure: spread(study, measure) for measure in (score, loss)}
    head = f"{len(trained)} of {len(study.runs)} runs are trained; their steps took {hours:.1f} hours."
    parts = [head, *(table(study, question, spreads) for question in study.questions)]
    return "\n\n".join(parts) + "\n"


def table(study: Study, question: Question, spreads: Spreads) -> str:
    """One question."""
    lines = [line(study, question, variant, spreads) for variant in question.variants]
    return f"### {question.title}\n\nChanges are against `{question.against}`.\n\n{markdown.table(COLUMNS, lines)}"


def line(study: Study, question: Question, variant: str, spreads: Spreads) -> list[str]:
    """One variant."""
    runs = study.finished(variant, question.seeds)
    settings = study.settings.get(variant, "")
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
    for question in study.questions:
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


def main() -> int:
    """Print the tables; 1 if these are no questions of a sweep."""
    parser = argparse.ArgumentParser(description="tabulate the validation scores of a sweep's variants")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as the sweep was run with, e.g. out=runs/x")
    options = parser.parse_args()
    try:
        print(tables(load_study(options.sweep, options.questions, options.overrides)), end="")
    except FlareError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
