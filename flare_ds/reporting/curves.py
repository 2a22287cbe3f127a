"""Learning curves: validation score against optimizer steps, as a CSV and, where matplotlib is, as a picture."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from flare_ds.files import write_atomically, write_text
from flare_ds.runs import RunResult

COLUMNS = ("run", "language", "method", "seed", "step", "validation_score", "validation_loss")


def write_curves(runs: Sequence[RunResult], root: Path, out: Path) -> list[Path]:
    """Write learning_curves.csv and, if matplotlib is installed, learning_curves.png.

    Args:
        runs: finished or not.
        root: directory that the CSV's run names are relative to.
        out: where the files go.

    Returns:
        The files written.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in runs:
        name = run.directory.relative_to(root)
        about = (name, run.config.task.target_language, run.method, run.config.train.seed)
        writer.writerows((*about, *point) for point in _validations(run))
    files = [out / "learning_curves.csv"]
    write_text(files[0], table.getvalue())
    if picture := _picture(runs):
        files.append(out / "learning_curves.png")
        write_atomically(files[1], lambda temporary: temporary.write_bytes(picture) and None)
    return files


def _validations(run: RunResult) -> list[tuple[int, float, float | None]]:
    """Step, score and loss of each validation; free answers have no loss."""
    return [
        (line["step"], line["validation_score"], line.get("validation_loss"))
        for line in run.train_log
        if "validation_score" in line
    ]


def _picture(runs: Sequence[RunResult]) -> bytes | None:
    """One panel a language, one colour a method, one line a run; None without matplotlib or without points."""
    languages = sorted({run.config.task.target_language for run in runs if _validations(run)})
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    if not languages:
        return None
    figure = Figure(figsize=(4.5 * len(languages), 3.6), layout="constrained")
    panels = figure.subplots(1, len(languages), squeeze=False)[0]
    for panel, language in zip(panels, languages, strict=True):
        _draw(panel, [run for run in runs if run.config.task.target_language == language])
        panel.set(title=language, xlabel="optimizer steps", ylabel="validation score")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()


def _draw(panel, runs: Sequence[RunResult]) -> None:  # type: ignore[no-untyped-def]  # matplotlib is optional
    methods = sorted({run.method for run in runs if _validations(run)})
    for i, method in enumerate(methods):
        # One line that is broken between runs: a thousand of their own take minutes to draw.
        points = [point for run in runs if run.method == method for point in (*_validations(run), (math.nan,) * 3)]
        steps, scores, _ = zip(*points, strict=True)
        panel.plot(steps, scores, marker=".", color=f"C{i}", label=method)
    panel.legend()
