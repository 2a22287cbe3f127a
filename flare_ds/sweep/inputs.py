"""What a sweep needs but does not make, its data, bases and trackers, is there before the first command starts."""

from collections.abc import Collection, Sequence
from pathlib import Path

from flare_ds.exceptions import Asking, FlareError, together
from flare_ds.fetch.needed import check_base, check_data
from flare_ds.sweep.nodes import KINDS, Node
from flare_ds.tracking.trackers import check_trackers


def check_inputs(nodes: Sequence[Node], path: str | Path, only: Collection[str] = KINDS) -> None:
    """Refuse a sweep, `only` these kinds of its nodes, that would fail for want of a directory or a package.

    Raises:
        FlareError: all that is not there, each once; what finished nodes have read may be gone.
    """
    wrong: dict[str, FlareError] = {}
    for node in nodes:
        for error in _missing(node) if node.kind in only else ():
            if error.problem not in wrong and not node.finished():
                wrong[error.problem] = error
    if wrong:
        raise together([*wrong.values()], str(path))


def _missing(node: Node) -> list[FlareError]:
    asked, run = Asking(), node.runs[0]
    reads_tokenizer = node.kind == "prepare"
    base = run.tokenizer_base if reads_tokenizer else run.config.model.base
    if node.kind in ("translate", "prepare"):
        asked.of(check_data, run.config.task)
    if reads_tokenizer or (node.kind != "translate" and run.maker is None):
        asked.of(check_base, base)
    if node.kind in ("stage1", "cells"):
        for one in node.runs:
            asked.of(check_trackers, one.config)
    return asked.wrong
