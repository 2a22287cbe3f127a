"""A plan as a graph: what is to be done, what each part needs, and when it need not be done.

    translate PAIR   a machine translation             prepare PAIR       a token cache; needs its translation
    stage1           a tuned, merged base; needs its   PLACE/METHOD-seedN a cell (or cells that train together);
                     cache                                                needs its cache and its base
    stage1 evaluate  the tuned base on the source language's test rows

A part that needs nothing unfinished can start. Whether it is finished is asked of what it should have made.
"""

import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from flare_ds.config import Config
from flare_ds.exceptions import DataError
from flare_ds.runs.changes import changes
from flare_ds.runs.directory import METRICS, VALIDATION_METRICS
from flare_ds.sweep.groups import alike, grouped
from flare_ds.sweep.plan import Plan, PlannedRun
from flare_ds.tasks.load import task_of

Kind = Literal["translate", "prepare", "stage1", "cells"]
KINDS: tuple[Kind, ...] = ("translate", "prepare", "stage1", "cells")
REPORT = "report"
PARTS = (*KINDS, REPORT)
"""What can be asked for alone."""
Readers = tuple[PlannedRun, ...]
"""All runs that read one cache."""


@dataclass(frozen=True)
class Node:
    """One command.

    Attributes:
        name: as it is shown.
        kind: what it does.
        runs: the runs it writes; for a cache or a translation those that read it.
        needs: names of the nodes that must be finished before it.
        command: its words now; cells that are done meanwhile are left out of them.
        finished: whether it need not be run.
        part: the node of some of its runs; None: they go together.
        left: of its cells those that are not done.
        does: what other nodes that take about as long do, too; empty: it follows from kind and runs.
    """

    name: str
    kind: Kind
    runs: tuple[PlannedRun, ...]
    needs: tuple[str, ...]
    command: Callable[[], tuple[str, ...]]
    finished: Callable[[], bool]
    part: "Callable[[tuple[PlannedRun, ...]], Node] | None" = None
    left: Callable[[], list[PlannedRun]] = list
    does: str = ""

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.runs[0].directory / "log.txt"

    @property
    def made(self) -> bool:
        """Whether it left what it should, once it ended with status 0: a launcher may do so although its ranks died."""
        return self.kind in ("translate", "prepare") or self.finished()

    @property
    def method(self) -> str:
        """What nodes that take about as long have in common."""
        methods = "+".join(dict.fromkeys(run.method for run in self.runs))
        return self.does or (methods if self.kind == "cells" else self.kind)


def nodes_of(plan: Plan, jobs: int = 1, again: Collection[str] = ()) -> list[Node]:
    """All nodes of a plan, in the order in which one job after another would run them.

    Runs that are to be made `again` are moved aside first.
    """
    nodes: dict[str, Node] = {}
    caches: dict[str, str] = {}  # by run: the node that makes its cache
    readers = alike(plan.runs, cache_key)
    for runs in readers:
        needs = tuple(_translated(runs, readers, nodes, plan))
        node = _prepared(runs, nodes, needs, plan)
        caches |= {run.name: node.name for run in runs}
    made = [node for run in plan.stages1 for node in _stage1(run, plan, caches[run.name])]
    done = {cell.name for cell in plan.cells if cell.name not in again and is_done(cell, plan)}
    made += [_cells(runs, plan, caches) for runs in grouped(plan, jobs, done)]
    return [*nodes.values(), *made]


def is_done(run: PlannedRun, plan: Plan) -> bool:
    """Whether a run is judged by what the sweep judges by, and stands on the base that is there."""
    if run.is_of_another_base:
        return False
    if plan.score == "test":
        return run.owner.finished and _is_scored_as_asked(run, METRICS)
    if run.config.recipe.trains:
        return run.owner.trained
    return (run.directory / VALIDATION_METRICS).is_file() and _is_scored_as_asked(run, VALIDATION_METRICS)


def _is_scored_as_asked(run: PlannedRun, name: str) -> bool:
    """Whether scores were made with the settings of the plan, not by hand with others; once they did not tell."""
    try:
        scored = run.owner.read(name).get("settings")
        return scored is None or not changes(Config.model_validate(scored), run.config)
    except (DataError, ValidationError):  # a report says what is wrong with them
        return True


_READ_LATER = {"max_prompt_tokens", "chat", "drop_shared_passages"}
"""Settings of a task that say how rows are read once they are translated."""


def cache_key(run: PlannedRun) -> Any:
    """What runs that read one cache have in common."""
    config = run.config
    mt_encoder = config.source if config.caches_mt else None
    answers = _answers(config) if config.answers_source else None
    return config.task, config.translate, config.cache_dir, run.tokenizer_base, mt_encoder, answers


def _answers(config: Config) -> Any:
    """What the source's text is answered with, where the target's is answered otherwise."""
    task, languages = task_of(config.task), (config.task.source_language, config.task.target_language)
    source, target = (task.label_words(language) for language in languages)
    return source if task.free_answers or source != target else None


def _translated(runs: Readers, readers: Sequence[Readers], nodes: dict[str, Node], plan: Plan) -> Iterator[str]:
    """The name of the translation that a cache is made from, if it is from one; made once for all tokenizers."""
    config = runs[0].config
    if not config.task.is_translated:
        return
    for node in nodes.values():
        if node.kind == "translate" and _translation(node.runs[0].config) == _translation(config):
            yield node.name
            return
    served = [others for others in readers if _translation(others[0].config) == _translation(config)]
    yield _single("translate", served, nodes, (), [], plan).name


def _translation(config: Config) -> Any:
    """What decides which rows are translated, how, and where to."""
    return config.task.model_dump(exclude=_READ_LATER), config.translate.model_dump(exclude={"batch_size", "drop"})


def _prepared(runs: Readers, nodes: dict[str, Node], needs: tuple[str, ...], plan: Plan) -> Node:
    base = runs[0].tokenizer_base
    words = [] if base == runs[0].config.model.base else [f"model.base={json.dumps(base)}"]
    return _single("prepare", [runs], nodes, needs, words, plan)


def _single(
    verb: Literal["translate", "prepare"],
    readers: Sequence[Readers],
    nodes: dict[str, Node],
    needs: tuple[str, ...],
    words: Sequence[str],
    plan: Plan,
) -> Node:
    """A command of one process: ours, so that its status can be believed; and a run looks for itself.

    Nobody needs it where each cache is there, or all that read it are done.
    """
    runs = tuple(chain(*readers))
    run, task = runs[0], runs[0].config.task
    languages = f"{task.source_language}-{task.target_language}" if run.config.has_source else task.target_language
    name = f"{verb} {run.place / languages}"
    name = f"{name} ({run.name})" if name in nodes else name
    command = (sys.executable, "-m", "flare_ds", verb, *_named(run), *words)
    nodes[name] = Node(
        name,
        verb,
        runs,
        needs,
        lambda: command,
        finished=lambda: all(has_cache(one[0].prepared) or _all_done(one, plan) for one in readers),
    )
    return nodes[name]


def has_cache(config: Config) -> bool:
    """Whether the cache of a run is there, and made from what its raw data say now."""
    from flare_ds.data.cache import remembered  # it imports transformers, which who shows progress does not need

    return remembered(config) is not None


def _stage1(run: PlannedRun, plan: Plan, cache: str) -> Iterator[Node]:
    tune = plan.command("stage1", *_named(run), "--output", str(run.merged))
    # A base that another stage 1 made, whose directory is gone, is refused where this one would be made.
    yield Node(run.name, "stage1", (run,), (cache,), lambda: tune, lambda: run.merged.is_dir() and run.owner.trained)
    if plan.score == "test":
        score = plan.command("evaluate", *_named(run))
        name, finished = f"{run.name} evaluate", partial(is_done, run, plan)
        yield Node(name, "stage1", (run,), (run.name,), lambda: score, finished, does="stage1 evaluate")


def _cells(runs: tuple[PlannedRun, ...], plan: Plan, caches: dict[str, str]) -> Node:
    first, *others = runs
    needs = dict.fromkeys([*(caches[run.name] for run in runs), *([first.stage1.name] if first.stage1 else [])])
    name = f"{first.name} and {len(others)} more" if others else first.name
    finished, left = partial(_all_done, runs, plan), partial(_left, runs, plan)
    part = partial(_cells, plan=plan, caches=caches) if others else None
    return Node(name, "cells", runs, tuple(needs), partial(_cells_command, runs, plan), finished, part, left)


def _left(runs: tuple[PlannedRun, ...], plan: Plan) -> list[PlannedRun]:
    return [run for run in runs if not is_done(run, plan)]


def _all_done(runs: tuple[PlannedRun, ...], plan: Plan) -> bool:
    return not _left(runs, plan)


def _cells_command(runs: tuple[PlannedRun, ...], plan: Plan) -> tuple[str, ...]:
    """Cells that were trained before are only evaluated; those that are done are left out."""
    named = dict.fromkeys(word for run in _left(runs, plan) or runs for word in _named(run))
    if runs[0].config.recipe.trains:
        return plan.command("train", *named, *(["--evaluate"] if plan.score == "test" else []))
    return plan.command("evaluate", *named, *(["--split", "validation"] if plan.score == "validation" else []))


def _named(run: PlannedRun) -> tuple[str, ...]:
    """A run, for a verb; its task in Python is the one that the user's own file names."""
    return (str(run.directory), *(("--trust-task-code",) if run.config.task.is_code else ()))
