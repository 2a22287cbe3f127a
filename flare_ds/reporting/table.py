"""The table of methods: what each scores over its seeds, and what it costs; one line a language and method.

Below it stands what a reader has to know of the data to read it rightly.
"""

from collections.abc import Sequence
from typing import get_args

import numpy as np

from flare_ds.markdown import DASH, table
from flare_ds.reporting.groups import ABOUT, REFERENCE, Group, clusters_of, declared, outcomes_of, references, seeds
from flare_ds.runs import RunResult
from flare_ds.scoring.metrics import contributions
from flare_ds.scoring.sureness import over_seeds_and_rows
from flare_ds.tasks.base import Metric

_SCORES = ("score", "deviation", "95 % interval")
_COSTS = {
    "trained parameters": ("trained_parameters", ",.0f"),
    "examples": ("examples", ",.0f"),
    "tokens a step": ("tokens_per_step", ",.0f"),
    "with padding": ("padded_tokens_per_step", ",.0f"),
    "step time": ("median_step_seconds", ".2f"),
    "tokens/s": ("tokens_per_second", ",.0f"),
}
"""Columns that training.json fills: the key there, and how it is written."""
_NOTHING_TRAINED = {"trained_parameters": "0", "examples": "0"}
_ANSWERS = {
    "cut_off": "of the generated answers did not end within generate.max_new_tokens",
    "empty": "of the generated answers are empty, which no right answer is",
    "unsayable": "of the test examples have no right answer that fits into generate.max_new_tokens",
    "not_a_label": "of the generated answers are not a label word",
}
"""Shares among the figures of metrics.json that bound the score, and what each is a share of."""
_METRICS = (*get_args(Metric), "f1")
"""What a score may be, among the figures of metrics.json."""
_FLOPS = f"FLOPs / {REFERENCE}'s"


def score_table(groups: Sequence[Group]) -> str:
    """The table, with its notes.

    Raises:
        DataError: a run's files are damaged, or seeds of one line were scored on different test rows.
    """
    others = _other_metrics(groups)
    lines = [line for group in groups for line in _lines(group, groups, others)]
    notes = [
        _footnote([run for group in groups for run in group.finished]),
        *_repeat_notes(groups),
        *_code_notes(groups),
        *_answer_notes(groups),
        *_language_notes(groups),
        *_source_notes(groups),
    ]
    return "\n\n".join([table((*ABOUT, "seeds", *_SCORES, *others, *_COSTS, _FLOPS), lines), *notes])


def _other_metrics(groups: Sequence[Group]) -> list[str]:
    """The metrics that stand beside some line's own: the F1 of free answers beside their exact matches."""
    found = {name for group in groups for run in group.finished for name in run.metrics["figures"]}
    own = {run.metrics["metric"] for group in groups for run in group.finished}
    return [name for name in _METRICS if name in found and own != {name}]


def _lines(group: Group, groups: Sequence[Group], others: Sequence[str]) -> list[tuple[str, ...]]:
    """A line for what is finished, and one for each run that is not."""
    lines: list[tuple[str, ...]] = []
    if group.finished:
        of = f"{len(group.finished)} ({seeds(group.finished)})" if group.trains else DASH
        measured = (*_scores(group), *_figures(group, others), *_costs(group), _relative_flops(group, groups))
        lines.append((*group.name, of, *measured))
    for run in group.runs:
        if not run.finished:
            seed = seeds([run]) if group.trains else DASH
            lines.append((*group.name, seed, f"unfinished: {run.progress}", *[DASH] * (len(others) + len(_COSTS) + 3)))
    return lines


def _scores(group: Group) -> tuple[str, str, str]:
    """Mean, standard deviation and interval of the mean."""
    runs = group.finished
    scores = [run.metrics["score"] for run in runs]
    if len(runs) == 1:
        lo, hi = runs[0].metrics["confidence_interval"]
        return f"{group.score:.3f}", DASH, f"{lo:.3f} to {hi:.3f}"
    values_SN = contributions(runs[0].metrics["metric"], outcomes_of(runs))
    sureness = over_seeds_and_rows(values_SN, clusters_of(runs))
    lo, hi = sureness.interval
    of_mean = f"{max(lo, 0):.3f} to {min(hi, 1):.3f}" if sureness.freedom else DASH
    return f"{group.score:.3f}", f"{np.std(scores, ddof=1):.3f}", of_mean


def _figures(group: Group, names: Sequence[str]) -> list[str]:
    """Means over seeds of the other metrics; a dash where a run was not measured by it."""
    figures = [[run.metrics["figures"].get(name) for run in group.finished] for name in names]
    return [DASH if None in of_runs else f"{np.mean(of_runs):.3f}" for of_runs in figures]


def _costs(group: Group) -> list[str]:
    if not group.trains:
        return [_NOTHING_TRAINED.get(key, DASH) for key, _ in _COSTS.values()]
    means = [(_mean(group, key), form) for key, form in _COSTS.values()]
    return [DASH if mean is None else format(mean, form) for mean, form in means]


def _mean(group: Group, key: str) -> float | None:
    """Over the finished runs, of a figure of training.json; None where one lacks it."""
    figures = [run.training[key] for run in group.finished if key in run.training]
    return float(np.mean(figures)) if figures and len(figures) == len(group.finished) else None


def _relative_flops(group: Group, groups: Sequence[Group]) -> str:
    of_reference = [_mean(other, "flops_per_step") for other in references(group, groups)]
    mine = _mean(group, "flops_per_step")
    # Against which of several, or of none, nobody could say.
    if mine is None or len(of_reference) != 1 or of_reference[0] is None:
        return DASH
    return f"{mine / of_reference[0]:.2f}"


def _footnote(finished: Sequence[RunResult]) -> str:
    rows = sorted({run.metrics["num_examples"] for run in finished})
    if not rows:
        return "No run is finished."
    metrics = ", ".join(sorted({run.metrics["metric"] for run in finished}))
    clusters = (run.clusters for run in finished)
    clustered = any(of_N is not None and len(np.unique(of_N)) < len(of_N) for of_N in clusters)
    together = "Rows about one text count as one draw in intervals (clusters). " if clustered else ""
    return (
        f"Score: {metrics} on {' or '.join(f'{n:,}' for n in rows)} test rows, mean over seeds; deviation: standard "
        "deviation over seeds (n - 1). Intervals: for other test rows and, where there are several seeds, for other "
        f"seeds too (one seed: bootstrap over test rows). {together}Examples: seen in training, repetitions "
        "included. Tokens a step: of all streams, without and with padding. Step time: median, in seconds. "
        "Tokens/s: in training, over all ranks. Runs trained in one job are each given an equal share of its time, so "
        "their times do not compare methods. FLOPs: of a training step."
    )


def _repeat_notes(groups: Sequence[Group]) -> list[str]:
    """Runs that do not count, because another with the same settings and seed does."""
    repeats = [f"{run.directory.name} ({' '.join(group.name)})" for group in groups for run in group.repeats]
    return [f"Left out, because another run has the same settings and seed: {', '.join(repeats)}."] if repeats else []


def _code_notes(groups: Sequence[Group]) -> list[str]:
    """Lines whose runs, or whose runs and lora's, were not all made by the same code, as far as they tell."""
    apart = [
        " ".join(group.name)
        for group in groups
        if group.finished
        and _differ_in_code([run for one in (group, *references(group, groups)) for run in one.finished])
    ]
    which = "`code` in their versions.json and metrics.json tells which"
    said = f"Begun or scored by different code of flare_ds, in the line or against {REFERENCE}"
    return [f"{said}: {', '.join(apart)}; {which}."] if apart else []


def _differ_in_code(runs: Sequence[RunResult]) -> bool:
    return any(len(set(codes) - {None}) > 1 for codes in zip(*(run.code for run in runs), strict=True))


def _answer_notes(groups: Sequence[Group]) -> list[str]:
    """What kept generated answers from being right, whatever the model knows: a line for each kind that there is."""
    notes = []
    for name, meaning in _ANSWERS.items():
        of_groups = [(group, [run.metrics["figures"].get(name, 0.0) for run in group.finished]) for group in groups]
        said = [f"{np.mean(of_runs):.1%} ({' '.join(x.name)})" for x, of_runs in of_groups if any(of_runs)]
        if said:
            notes.append(f"{name}: {', '.join(said)} {meaning}.")
    return notes


def _language_notes(groups: Sequence[Group]) -> list[str]:
    """Lines whose free answers are in another language than lora's, with which they are compared."""
    apart = [
        f"{' '.join(group.name)} ({run.config.answer_language}, not {language})"
        for group in groups
        for run in group.finished[:1]
        for language in {one.config.answer_language for other in references(group, groups) for one in other.finished}
        if run.answers is not None and language != run.config.answer_language
    ]
    said = "scored on right answers in another language, so the difference is partly the languages'"
    return [f"Against {REFERENCE}, {said}: {', '.join(apart)}."] if apart else []


def _source_notes(groups: Sequence[Group]) -> list[str]:
    """What the source side of each task is, where the data set has it ready: a line for each kind."""
    languages: dict[tuple[str, str], list[str]] = {}
    for group in groups:
        run = group.runs[0]
        config = run.config
        said = _source_side(run) if config.needs_source else None
        if said and group.language not in languages.setdefault((config.task.name, said), []):
            languages[config.task.name, said].append(group.language)
    return [f"{task} in {', '.join(targets)}: {said}" for (task, said), targets in languages.items()]


def _source_side(run: RunResult) -> str | None:
    """How the source texts of the test rows came about; None: as any would, by translation for the test."""
    declaration, task = declared(run), run.config.task
    original = declaration and declaration.original_language
    if task.sides == "translated" or original is None:
        return None
    if original == task.target_language:
        side = f"the {task.source_language} side is itself a translation of the {original} rows"
        read = "a translation of the test text itself"
    elif original == task.source_language:
        side = f"the rows are translations of the {original} side"
        read = "the original of the test text"
    else:
        side = f"both sides are translations of the {original} rows"
        read = "another translation of the test text's original"
    others = f" (unless the files in {task.data_dir} hold other texts)" if task.data_dir else ""
    return f"{side}{others}, so translate_test reads {read}; so do the other methods that read the source."
