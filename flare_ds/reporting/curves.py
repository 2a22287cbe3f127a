"""Learning curves: validation score against optimizer steps, as a CSV and, where matplotlib is, as a picture."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flare_ds.files import write_atomically, write_text
from flare_ds.reporting.groups import about, without_seed
from flare_ds.runs import RunResult

COLUMNS = ("run", "language", "method", "seed", "step", "validation_score", "validation_loss")
_ACROSS = 6
"""Panels beside each other; a picture may not be wider than 2^16 pixels."""
_DASHES = ("-", "--", ":", "-.")
Curve = Sequence[tuple[int, float, float | None]]
"""Step, score and loss of each validation; free answers have no loss."""


def write_curves(runs: Sequence[RunResult], root: Path, out: Path) -> list[Path]:
    """Write learning_curves.csv, which calls runs by their paths below `root`, and, with matplotlib, a picture of them.

    Returns:
        The files written.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    curves = [(run, _validations(run)) for run in runs]
    for run, curve in curves:
        name = run.directory.relative_to(root)
        about = (name, run.config.task.target_language, run.method, run.config.train.seed)
        writer.writerows((*about, *point) for point in curve)
    files = [out / "learning_curves.csv"]
    write_text(files[0], table.getvalue())
    if picture := _picture([(run, curve) for run, curve in curves if curve]):
        files.append(out / "learning_curves.png")
        write_atomically(files[1], lambda temporary: temporary.write_bytes(picture) and None)
    return files


def _validations(run: RunResult) -> Curve:
    return [
        (line["step"], line["validation_score"], line.get("validation_loss"))
        for line in run.train_log
        if "validation_score" in line
    ]


def _picture(curves: Sequence[tuple[RunResult, Curve]]) -> bytes | None:
    """One panel a task, base and language, one colour a method, or each of its settings, one line a run; one legend.

    None without matplotlib or without curves.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    if not curves:
        return None
    labels = _labels([run for run, _ in curves])
    panels: dict[tuple[str, ...], dict[str, list[Curve]]] = {}
    for (run, curve), label in zip(curves, labels, strict=True):
        panels.setdefault(about(run), {}).setdefault(label, []).append(curve)
    differing = [part for part, values in enumerate(zip(*panels, strict=True)) if len(set(values)) > 1] or [2]
    looks = {label: _look(i) for i, label in enumerate(sorted(set(labels)))}
    rows, columns = math.ceil(len(panels) / _ACROSS), min(len(panels), _ACROSS)
    figure = Figure(layout="constrained")
    for place, (parts, methods) in enumerate(sorted(panels.items()), start=1):
        panel, title = figure.add_subplot(rows, columns, place), " ".join(parts[part] for part in differing)
        _draw(panel, methods, looks)
        panel.set(title=title, xlabel="optimizer steps", ylabel="validation score")
    one_each = {line.get_label(): line for panel in figure.axes for line in panel.get_lines()}
    legend = figure.legend(handles=[one_each[label] for label in looks], loc="outside right upper").get_window_extent()
    wide, high = (size / figure.dpi for size in (legend.width, legend.height))
    figure.set_size_inches(4.5 * columns + wide, max(3.6 * rows, high + 0.2))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()


def _labels(runs: Sequence[RunResult]) -> list[str]:
    """The method of each run, with the run's name but for its seed where a panel has several settings of it."""
    named = [(about(run), run.method, without_seed(run.directory.name)) for run in runs]
    names: dict[tuple[Any, str], set[str]] = {}
    for panel, method, name in named:
        names.setdefault((panel, method), set()).add(name)
    several = {method for (_, method), of_method in names.items() if len(of_method) > 1}
    return [f"{method} ({name})" if method in several else method for _, method, name in named]


def _look(number: int) -> dict[str, str]:
    """Of a line: there are ten colours, then the dashes are others."""
    return {"color": f"C{number % 10}", "linestyle": _DASHES[number // 10 % len(_DASHES)]}


def _draw(panel: Any, methods: Mapping[str, Sequence[Curve]], looks: Mapping[str, Mapping[str, str]]) -> None:
    for method in sorted(methods):
        # One line that is broken between runs: a thousand of their own take minutes to draw.
        points = [point for curve in methods[method] for point in (*curve, (math.nan,) * 3)]
        steps, scores, _ = zip(*points, strict=True)
        panel.plot(steps, scores, marker=".", label=method, **looks[method])
