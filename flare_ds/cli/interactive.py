"""`predict RUN --interactive`: questions one after another, answered by a model that stays loaded.

A question is a line for each text that the method reads: the target's, then each source's. An empty source line lets
the target be read alone; with --translate there is none. A terminal is asked by name; from a pipe the same lines are
read without.
"""

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from flare_ds.config import Config
from flare_ds.evaluation.given_rows import asked_rows
from flare_ds.exceptions import FlareError
from flare_ds.failures import say

if TYPE_CHECKING:
    from flare_ds.data.parallel import ParallelRow
    from flare_ds.tasks.base import Task


def converse(
    config: Config, task: "Task", ask: "Callable[[ParallelRow], str]", lines: TextIO, *, targets_alone: bool = False
) -> None:
    """Answer until the lines end; a question that cannot be read or answered is told, and the next one is read.

    Args:
        config: of the run.
        task: its task.
        ask: the answer to a row, ready to be printed.
        lines: the terminal, or a pipe.
        targets_alone: whether a question is its target's line alone, which is translated.
    """
    reads_target = targets_alone or config.recipe.reads != "source"
    languages = () if targets_alone else config.sources_read
    names = ["target"] * reads_target + [f"source ({code})" for code in languages]
    for texts in _questions(names, lines):
        target, sources = (texts[0], texts[1:]) if reads_target else (None, texts)
        try:
            (row,) = asked_rows(config, task, target, sources if len(sources) > 1 else (sources or [None])[0])
            print(ask(row), flush=True)
        except FlareError as error:
            say(str(error))


def _questions(names: list[str], lines: TextIO) -> Iterator[list[str | None]]:
    """The texts of each question; one that the end of the lines cut short is none."""
    while True:
        texts: list[str | None] = []
        for name in names:
            if lines.isatty():
                print(f"{name}> ", end="", file=sys.stderr, flush=True)
            if not (line := lines.readline()):
                return
            texts.append(line.strip() or None)
        yield texts
