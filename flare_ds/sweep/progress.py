"""A sweep's progress in words: for `flare-ds status`, and for a terminal while it runs."""

import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from flare_ds.exceptions import FlareError
from flare_ds.human import human_age
from flare_ds.locks import holder_of
from flare_ds.runs.directory import RunDirectory
from flare_ds.sweep.record import LOCK, NodeRecord, SweepRecord, read_record

_RUNS = 10
"""Of a job that are shown one by one: more would push the summary off the screen, and each is read anew."""
_RECENT = 20
"""Steps whose mean says how fast a run is now."""
_RECENT_BYTES = 1 << 16
"""Of a log, enough for these steps: it is asked once a second, of every cell that trains."""


def progress_of(out: Path) -> str | None:
    """How far the sweep in a directory is; None: there is none.

    Raises:
        DataError: its record is damaged.
    """
    record = read_record(out)
    return None if record is None else progress(record, out, alive=holder_of(out / LOCK) is not None)


def progress(record: SweepRecord, out: Path, *, alive: bool) -> str:
    """How far a sweep is: what runs, what failed and why, how many are left and for how long.

    Unless it is `alive`, no process works on it, and what was running was stopped.
    """
    lines, training = [], dict[str, float]()
    for name in record.of_state("running"):
        node = record.nodes[name]
        since = human_age(time.time() - (node.started or time.time()))
        of_runs, seconds = _runs(node, out)
        training |= {} if seconds is None else {name: seconds}
        still = f", about {human_age(seconds)} of steps left" if seconds else ""
        lines.append(f"running  {name}, for {since}{still}" if alive else f"stopped  {name}")
        lines += [f"         {line}" for line in of_runs]
    lines += [f"failed   {name}: {record.nodes[name].reason}" for name in record.of_state("failed")]
    counts = Counter(node.state if alive or node.state != "running" else "stopped" for node in record.nodes.values())
    blocked = len(record.blocked())
    counts["waiting"] -= blocked
    counts["blocked by a failed one"] = blocked
    said = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    return "\n".join([*lines, f"{len(record.nodes)} stages: {said}{left(record, typical_seconds(record), training)}"])


@dataclass(frozen=True)
class _Pace:
    """A run that trains: the last step whose loss was a number, of how many, and seconds of a recent one."""

    name: str
    step: int
    steps: int | None
    seconds: float
    loss: float

    def __str__(self) -> str:
        of, speed = f" of {self.steps}" if self.steps else "", f", {self.seconds:.2f} s a step" if self.seconds else ""
        return f"{self.name}: step {self.step}{of}{speed}, loss {self.loss:.3f}"


def _runs(node: NodeRecord, out: Path) -> tuple[list[str], float | None]:
    """How far the runs of a job are that are not trained, and seconds that their steps will still take, if known.

    Runs that train together share the time of a step, so their seconds add up.
    """
    todo = [run for run in node.runs if not RunDirectory(out / run).trained]
    shown = list(islice(filter(None, (_pace(out / run, run) for run in todo)), _RUNS))
    count = [f"{len(node.runs) - len(todo)} of {len(node.runs)} runs trained"] * (len(node.runs) > 1)
    more = [f"and {len(todo) - len(shown)} more runs"] * (len(todo) > len(shown) > 0)
    rest = [(pace.steps - pace.step) * pace.seconds for pace in shown if pace.steps and pace.seconds]
    whole = [pace.steps * pace.seconds for pace in shown if pace.steps and pace.seconds]
    # Others are as far as those shown if more train than are shown; else they have not begun.
    others = statistics.mean(rest if len(shown) == _RUNS else whole) if rest else 0.0
    seconds = sum(rest) + (len(todo) - len(rest)) * others if rest else None
    return [*count, *map(str, shown), *more], seconds


def _pace(run: Path, name: str) -> _Pace | None:
    """How far the training of a run is; None: it has no step, or cannot be read."""
    try:
        log = [line for line in RunDirectory(run).train_log(_RECENT_BYTES) if line.get("loss") is not None]
        steps = RunDirectory(run).config.train.steps if log else None
    except FlareError:
        return None
    if not log:
        return None
    seconds = statistics.mean(line.get("step_seconds", 0.0) for line in log[-_RECENT:])
    return _Pace(name, log[-1]["step"], steps, seconds, log[-1]["loss"])


def typical_seconds(record: SweepRecord) -> dict[str, float]:
    """Seconds that nodes of one method take, where some are done."""
    known: dict[str, list[float]] = {}
    for node in record.nodes.values():
        if node.state == "done" and node.seconds is not None:
            known.setdefault(node.method, []).append(node.seconds)
    return {method: statistics.median(seconds) for method, seconds in known.items()}


def left(record: SweepRecord, typical: Mapping[str, float], training: Mapping[str, float]) -> str:
    """For how long a sweep has still to go, and of how many nodes that is not known.

    Args:
        record: of the sweep.
        typical: seconds that nodes of a method take.
        training: seconds that the steps of running nodes will still take, which is the least that these nodes will.
    """
    blocked, known, until = record.blocked(), list[float](), dict[str, float]()
    todo = {name: node for name, node in record.nodes.items() if node.state in ("waiting", "running")}
    todo = {name: node for name, node in todo.items() if name not in blocked}
    for name, node in todo.items():  # what is needed comes first
        seconds = _remaining(node, typical)
        seconds = max(seconds or 0.0, training[name]) if name in training else seconds
        known += [] if seconds is None else [seconds]
        until[name] = (seconds or 0.0) + max((until[need] for need in node.needs if need in until), default=0.0)
    if not known:
        return ""
    unknown = f", and {len(todo) - len(known)} whose time is not known" if len(known) < len(todo) else ""
    return f"; about {human_age(max(sum(known) / record.jobs, *until.values()))} left{unknown}"


def _remaining(node: NodeRecord, typical: Mapping[str, float]) -> float | None:
    seconds = typical.get(node.method)
    if seconds is None or node.state == "waiting" or node.started is None:
        return seconds
    return max(seconds - (time.time() - node.started), 0.0)
