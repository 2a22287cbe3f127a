"""Each method against lora, on the same test rows: for each seed, and over all seeds that both have.

A method that trains nothing meets lora of every seed: it is the same system each time.
"""

from collections.abc import Sequence

from flare_ds.markdown import DASH, table
from flare_ds.reporting.groups import REFERENCE, Group, outcomes_of, references, same_test, seeds
from flare_ds.runs import RunResult
from flare_ds.scoring.mcnemar import mcnemar
from flare_ds.scoring.metrics import paired_difference

_COLUMNS = (
    "language",
    "method",
    "seeds",
    "runs",
    f"method − {REFERENCE}",
    "95 % interval",
    f"right alone : {REFERENCE} alone",
    "McNemar p",
)
_NOTE = (
    "Intervals: paired bootstrap over test rows, of the mean over seeds; they do not know how a new seed would score. "
    "McNemar: exact, two-sided, on the rows that just one of the two has right; for metrics that count right rows. "
    "p is not corrected for the number of comparisons."
)


def differences(groups: Sequence[Group]) -> str:
    """Every method minus lora, wherever they stand in one setting; empty where none does.

    Raises:
        DataError: a run's files are damaged, or seeds of one method were scored on different test rows.
    """
    lines = [
        line
        for group in groups
        if group.method not in (REFERENCE, "task adapter")
        for lora in references(group, groups)
        for line in _compared(group, lora)
    ]
    if not lines:
        return ""
    return "\n\n".join([f"## Against {REFERENCE}, paired on the same test rows", table(_COLUMNS, lines), _NOTE])


def _compared(group: Group, lora: Group) -> list[tuple[str, ...]]:
    """A line for each seed that both have and, if there are several, one for their mean."""
    by_seed = {run.config.train.seed: run for run in group.finished}
    untrained = group.finished[0] if group.finished and not group.trains else None
    partners = [(untrained or by_seed.get(run.config.train.seed), run) for run in lora.finished]
    pairs = [(run, other) for run, other in partners if run is not None]
    lines = [_one_seed(run, other) for run, other in pairs]
    return [*lines, _all_seeds(pairs)] if len(pairs) > 1 else lines


def _one_seed(run: RunResult, lora: RunResult) -> tuple[str, ...]:
    about = (*_about(run), seeds([lora]), f"{run.directory.name}, {lora.directory.name}")
    if not same_test(run, lora):
        return (*about, "scored on different test rows or by other metrics", DASH, DASH, DASH)
    return (*about, *_difference([run], [lora]), *_mcnemar(run, lora))


def _all_seeds(pairs: Sequence[tuple[RunResult, RunResult]]) -> tuple[str, ...]:
    runs, loras = zip(*pairs, strict=True)
    about = (*_about(runs[0]), seeds(loras), "all of them")
    if not all(same_test(run, lora) for run, lora in pairs):
        return (*about, *[DASH] * 4)
    return (*about, *_difference(runs, loras), DASH, DASH)


def _about(run: RunResult) -> tuple[str, str]:
    return run.config.task.target_language, run.method


def _difference(runs: Sequence[RunResult], loras: Sequence[RunResult]) -> tuple[str, str]:
    outcomes = outcomes_of([*runs, *loras])
    result = paired_difference(runs[0].metrics["metric"], outcomes[: len(runs)], outcomes[len(runs) :])
    return f"{result.mean:+.3f}", f"{result.lo:+.3f} to {result.hi:+.3f}"


def _mcnemar(run: RunResult, lora: RunResult) -> tuple[str, str]:
    if run.metrics["metric"] == "macro_f1":
        return DASH, DASH
    result = mcnemar(*outcomes_of([run, lora]))
    return f"{result.a_only} : {result.b_only}", f"{result.p:.2g}"
