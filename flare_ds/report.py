"""What a directory of runs says: the table, flare against lora, the learning curves.

Runs that differ only in their seed share a line of the table. Runs that are not finished stand in it as such.
"""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from flare_ds.config import METHODS
from flare_ds.curves import write_curves
from flare_ds.evaluation.metrics import Outcome, confidence_interval, paired_difference
from flare_ds.exceptions import DataError
from flare_ds.files import write_text
from flare_ds.runs import RunResult, find_runs

_COLUMNS = ("language", "method", "seeds", "score", "95 % interval", "trained parameters", "step time", "tokens/s")
_DASH = "-"


def report(directory: str | Path, out: str | Path | None = None) -> str:
    """Summarise the runs below a directory.

    Args:
        directory: searched for run directories.
        out: where report.md, learning_curves.csv and learning_curves.png are written (default: `directory`).

    Returns:
        The report, in Markdown.

    Raises:
        DataError: there are no runs, or a run's files are damaged.
    """
    root = Path(directory)
    place = Path(out) if out is not None else root
    runs = find_runs(root)
    place.mkdir(parents=True, exist_ok=True)
    curves = write_curves(runs, root, place)
    parts = [f"# Report on {root}", _score_table(runs, root), _differences(runs), _pictures(curves, root)]
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_text(place / "report.md", text)
    return text


def _score_table(runs: Sequence[RunResult], root: Path) -> str:
    groups = _groups(runs)
    names = [(group[0].config.task.target_language, group[0].method) for group in groups]
    lines = []
    for group, (language, method) in zip(groups, names, strict=True):
        # Two lines of the same name (another rank, another base) are told apart by where they are.
        place = f" ({group[0].directory.relative_to(root)})" if names.count((language, method)) > 1 else ""
        finished = [run for run in group if run.finished]
        if finished:
            lines.append((language, method + place, _seeds(finished), *_results(finished)))
        for run in group:
            if not run.finished:
                state = f"unfinished: {run.progress}"
                lines.append((language, method + place, _seeds([run]), state, *[_DASH] * 4))
    return _table(_COLUMNS, lines) + "\n\n" + _footnote(runs)


def _groups(runs: Sequence[RunResult]) -> list[list[RunResult]]:
    """Runs side by side that differ only in their seed; by language, then baselines first, then by path."""
    groups: dict[str, list[RunResult]] = {}
    for run in runs:
        settings = run.config.model_dump(mode="json", exclude={"run_dir": True, "train": {"seed"}})
        groups.setdefault(json.dumps([str(run.directory.parent), settings]), []).append(run)

    def place(group: list[RunResult]) -> tuple[str, int, Path]:
        run = group[0]
        return run.config.task.target_language, METHODS.index(run.config.method), run.directory

    return sorted(groups.values(), key=place)


def _results(runs: Sequence[RunResult]) -> tuple[str, ...]:
    """Score, interval and costs of runs that differ only in their seed."""
    score = float(np.mean([run.metrics["score"] for run in runs]))
    lo, hi = (
        runs[0].metrics["confidence_interval"]
        if len(runs) == 1
        else confidence_interval(runs[0].metrics["metric"], _outcomes(runs))
    )
    interval = f"{lo:.3f} to {hi:.3f}"
    if not all(run.training for run in runs):
        return f"{score:.3f}", interval, _DASH, _DASH, _DASH
    parameters, seconds, speed = (
        float(np.mean([run.training[key] for run in runs]))
        for key in ("trained_parameters", "median_step_seconds", "tokens_per_second")
    )
    return f"{score:.3f}", interval, f"{parameters:,.0f}", f"{seconds:.2f} s", f"{speed:,.0f}"


def _outcomes(runs: Sequence[RunResult]) -> list[list[Outcome]]:
    """What each run said of the test examples, in the order of the first run's.

    Raises:
        DataError: the runs were scored on different examples, or by different metrics.
    """
    for run in runs[1:]:
        if not _same_test(run, runs[0]):
            problem = f"{run.directory} and {runs[0].directory} were scored on different test rows or by other metrics"
            raise DataError(problem, fix="delete metrics.json of the older one and evaluate it again")
    return [[run.outcomes[example] for example in runs[0].outcomes] for run in runs]


def _same_test(run: RunResult, other: RunResult) -> bool:
    same_metric = run.metrics["metric"] == other.metrics["metric"]
    return same_metric and run.outcomes.keys() == other.outcomes.keys()


def _differences(runs: Sequence[RunResult]) -> str:
    """Flare minus lora for each seed, and over all of them, wherever the two stand side by side."""
    groups = _groups([run for run in runs if run.finished])
    flare = [group for group in groups if group[0].method == "flare"]
    lora = [group for group in groups if group[0].method == "lora"]
    lines = [line for a, b in product(flare, lora) if _setting(a) == _setting(b) for line in _compared(a, b)]
    if not lines:
        return ""
    columns = ("language", "seeds", "runs", "flare − lora", "95 % interval")
    return "## flare − lora, paired on the same test rows\n\n" + _table(columns, lines)


def _setting(group: Sequence[RunResult]) -> tuple[Path, str, str, str]:
    run = group[0]
    return run.directory.parent, run.config.model.base, run.config.task.name, run.config.task.target_language


def _compared(flare: Sequence[RunResult], lora: Sequence[RunResult]) -> list[tuple[str, ...]]:
    """A line for each seed that both have and, if there are several, one for their mean."""
    partners = {run.config.train.seed: run for run in lora}
    pairs = [(run, partners[run.config.train.seed]) for run in flare if run.config.train.seed in partners]
    lines = [_difference([a], [b]) for a, b in pairs]
    return [*lines, _difference(*zip(*pairs, strict=True))] if len(pairs) > 1 else lines


def _difference(flare: Sequence[RunResult], lora: Sequence[RunResult]) -> tuple[str, ...]:
    runs = "all of them" if len(flare) > 1 else f"{flare[0].directory.name}, {lora[0].directory.name}"
    about = (flare[0].config.task.target_language, _seeds(flare), runs)
    if not _same_test(flare[0], lora[0]):
        return (*about, "scored on different test rows or by other metrics", _DASH)
    outcomes = _outcomes([*flare, *lora])
    metric = flare[0].metrics["metric"]
    result = paired_difference(metric, outcomes[: len(flare)], outcomes[len(flare) :])
    return (*about, f"{result.mean:+.3f}", f"{result.lo:+.3f} to {result.hi:+.3f}")


def _footnote(runs: Sequence[RunResult]) -> str:
    rows = sorted({run.metrics["num_examples"] for run in runs if run.finished})
    if not rows:
        return "No run is finished."
    metrics = ", ".join(sorted({run.metrics["metric"] for run in runs if run.finished}))
    return (
        f"Score: {metrics} on {' or '.join(f'{n:,}' for n in rows)} test rows, mean over seeds. "
        "Intervals: bootstrap over test rows. Step time: median. Tokens/s: of the training, all ranks together."
    )


def _pictures(curves: Sequence[Path], root: Path) -> str:
    lines = ["## Learning curves", ""]
    names = [path.name for path in curves]
    if "learning_curves.png" in names:
        lines += ["![validation score against steps](learning_curves.png)", ""]
    else:
        lines += ["No picture: pip install matplotlib, or no validation yet.", ""]
    lines += [f"Files: {', '.join(str(path) for path in curves)}", f"TensorBoard: `tensorboard --logdir {root}`"]
    return "\n".join(lines)


def _seeds(runs: Sequence[RunResult]) -> str:
    return ", ".join(str(run.config.train.seed) for run in sorted(runs, key=lambda run: run.config.train.seed))


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up in a terminal."""
    widths = [max(len(row[i]) for row in (columns, *lines)) for i in range(len(columns))]
    rows = [columns, ["-" * width for width in widths], *lines]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )
