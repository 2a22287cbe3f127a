"""What a directory of runs says: the table of methods, each against lora, beside the paper, the learning curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flare_ds import markdown
from flare_ds.files import write_text
from flare_ds.reporting.curves import write_curves
from flare_ds.reporting.differences import comparisons, differences, seeds_apart
from flare_ds.reporting.groups import grouped
from flare_ds.reporting.over_languages import over_languages_table
from flare_ds.reporting.paper import against_paper
from flare_ds.reporting.table import score_table
from flare_ds.reporting.validation import validation_table
from flare_ds.runs import Unreadable, find_runs
from flare_ds.texts import one_line


@dataclass(frozen=True)
class Report:
    """What some runs say.

    Attributes:
        text: in Markdown.
        unreadable: the runs that it could not read.
    """

    text: str
    unreadable: Sequence[Unreadable]


def report(directory: str | Path, out: str | Path | None = None) -> Report:
    """Summarise the runs below a directory.

    Args:
        directory: searched for run directories.
        out: where report.md, learning_curves.csv and learning_curves.png are written (default: `directory`).

    Returns:
        The report; a run that cannot be read is a line of it.

    Raises:
        DataError: there are no runs, or seeds of one method were scored on different test rows.
    """
    root = Path(directory)
    place = Path(out) if out is not None else root
    runs, unreadable = find_runs(root)
    groups = grouped(runs, root)
    compared = comparisons(groups)
    curves = write_curves(runs, root, place)
    parts = [
        f"# Report on {root}",
        score_table(groups),
        _unreadable(unreadable, root),
        validation_table(groups),
        differences(compared, seeds_apart(groups)),
        over_languages_table(compared),
        against_paper(groups),
        _pictures(curves, root),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_text(place / "report.md", text)
    return Report(text, unreadable)


def _unreadable(runs: Sequence[Unreadable], root: Path) -> str:
    lines = [(str(run.directory.relative_to(root)), one_line(f"cannot be read: {run.problem}")) for run in runs]
    return markdown.table(("run", "problem"), lines) if lines else ""


def _pictures(curves: Sequence[Path], root: Path) -> str:
    lines = ["## Learning curves", ""]
    names = [path.name for path in curves]
    if "learning_curves.png" in names:
        lines += ["![validation score against steps](learning_curves.png)", ""]
    else:
        lines += ["No picture: pip install matplotlib, or no validation yet.", ""]
    lines += [f"Files: {', '.join(str(path) for path in curves)}", f"TensorBoard: `tensorboard --logdir {root}`"]
    return "\n".join(lines)
