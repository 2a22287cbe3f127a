"""What runs score on the validation rows, where they are not scored on test rows: a table to choose settings by."""

from collections.abc import Mapping, Sequence

import numpy as np

from flare_ds.markdown import DASH, table
from flare_ds.reporting.groups import ABOUT, REFERENCE, Group, references

_COLUMNS = (*ABOUT, "seeds", "score", "deviation", f"method − {REFERENCE}", "by seed")
_NOTE = (
    "The best validation score of each trained run. It was selected on these very rows, so it is too high to report as "
    "a result: use it to choose settings. Mean over seeds; deviation: standard deviation over seeds (n - 1). Rows: "
    "train.validate_rows; a method that trains nothing is scored on the whole split, so its difference is a dash where "
    "the numbers of rows differ. Runs trained with train.objective: labels rank the label words here, whatever "
    "evaluate.answers says, so their difference from generated answers is a dash, too."
)


def validation_table(groups: Sequence[Group]) -> str:
    """A line for each group that is trained; empty where each of them has a run that is scored on test rows.

    Raises:
        DataError: a run's files are damaged.
    """
    found = [(group, scores) for group in groups if (scores := _scores(group))]
    if all(group.finished for group, _ in found):
        return ""
    lines = [_line(group, scores, groups) for group, scores in found]
    return "\n\n".join(["## On validation rows", table(_COLUMNS, lines), _NOTE])


def _scores(group: Group) -> dict[int, float]:
    """By seed, of the runs that have one."""
    scores = {run.config.train.seed: run.validation_score for run in group.runs}
    return {seed: score for seed, score in scores.items() if score is not None}


def _line(group: Group, scores: Mapping[int, float], groups: Sequence[Group]) -> tuple[str, ...]:
    values = list(scores.values())
    deviation = f"{np.std(values, ddof=1):.3f}" if len(values) > 1 else DASH
    seeds = ", ".join(map(str, scores)) if group.trains else DASH
    return (*group.name, seeds, f"{np.mean(values):.3f}", deviation, *_difference(group, scores, groups))


def _difference(group: Group, scores: Mapping[int, float], groups: Sequence[Group]) -> tuple[str, str]:
    """From the reference: the mean and that of each seed; dashes where there is not just one, or no seed in common."""
    loras = references(group, groups) if group.method != REFERENCE else []
    alike = len(loras) == 1 and _same_rows(group, loras[0]) and _same_answers(group, loras[0])
    of_lora = _scores(loras[0]) if alike else {}
    mine = dict.fromkeys(of_lora, next(iter(scores.values()))) if not group.trains else scores
    by_seed = [mine[seed] - of_lora[seed] for seed in of_lora if seed in mine]
    if not by_seed:
        return DASH, DASH
    mean = f"{np.mean(by_seed):+z.3f}{'' if group.is_set_as(loras[0]) else ', set otherwise'}"
    each = " ".join(f"{one:+z.3f}" for one in by_seed) if len(by_seed) > 1 else DASH
    return mean, each


def _same_answers(group: Group, lora: Group) -> bool:
    """Whether both rank the label words, or both write; what is trained to rank them does so until its test."""
    asked = [one.runs[0].config for one in (group, lora)]
    ranked = [one.recipe.trains and one.train.objective == "labels" for one in asked]
    answers = ["ranked" if ranks else one.evaluate.answers for ranks, one in zip(ranked, asked, strict=True)]
    return answers[0] == answers[1]


def _same_rows(group: Group, lora: Group) -> bool:
    """Whether both are scored on as many of the first validation rows; what trains nothing reads all."""
    asked = [one.runs[0].config.train.validate_rows if one.trains else None for one in (group, lora)]
    return asked[0] == asked[1]
