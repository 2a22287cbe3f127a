"""How far a sweep is: OUT/sweep.json, written by the sweep at each turn, read by whoever asks.

What is finished is asked of what was made; this says the rest: what runs, since when, what failed and why, and how
long each part took, from which follows how long the others will.
"""

import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from flare_ds.exceptions import DataError, FlareError
from flare_ds.files import reading, write_json
from flare_ds.json_text import parse_object
from flare_ds.runs.directory import TRAINING, RunDirectory
from flare_ds.sweep.nodes import Node

RECORD, LOCK = "sweep.json", "sweep.lock"
State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class NodeRecord:
    """One node.

    Attributes:
        kind: what it does.
        method: what nodes that take about as long have in common.
        needs: names of other nodes.
        runs: directories of its runs, below that of the sweep.
        log: where its output goes, below that of the sweep.
        state: how far it is.
        started: when it was started last, in seconds since 1970.
        seconds: how long it took, over all calls.
        reason: why it failed.
    """

    kind: str
    method: str
    needs: list[str]
    runs: list[str]
    log: str
    state: State = "waiting"
    started: float | None = None
    seconds: float | None = None
    reason: str = ""


@dataclass
class SweepRecord:
    """All nodes of a sweep, by name.

    Attributes:
        jobs: how many run at once.
        nodes: in their order.
    """

    jobs: int
    nodes: dict[str, NodeRecord] = field(default_factory=dict)

    def change(self, name: str, **values: Any) -> None:
        """Set what is known of a node now."""
        self.nodes[name] = replace(self.nodes[name], **values)

    def start(self, name: str) -> None:
        """A node starts now."""
        self.change(name, state="running", started=time.time(), reason="")

    def end(self, name: str, reason: str = "") -> float:
        """A node ends now: well, unless there is a reason why it did not; returns for how long it ran."""
        node = self.nodes[name]
        assert node.started is not None, f"{name} was never started"
        seconds = time.time() - node.started
        state = "failed" if reason else "done"
        self.change(name, state=state, seconds=(node.seconds or 0.0) + seconds, reason=reason)
        return seconds

    def divide(self, name: str, parts: Mapping[str, NodeRecord]) -> None:
        """Put the parts of a node in its place, for all at once: others may be reading."""
        places = [parts if other == name else {other: node} for other, node in self.nodes.items()]
        self.nodes = {name: node for place in places for name, node in place.items()}

    def of_state(self, state: State) -> list[str]:
        """Names of the nodes of a state."""
        return [name for name, node in self.nodes.items() if node.state == state]

    def blocked(self, by: Collection[str] | None = None) -> dict[str, str]:
        """Nodes that wait in vain for those that failed, or for others that will not end well; each with the first."""
        found = {name: name for name in (self.of_state("failed") if by is None else by)}
        for name, node in self.nodes.items():  # what is needed comes first
            if node.state == "waiting" and (reason := next((found[need] for need in node.needs if need in found), "")):
                found.setdefault(name, reason)
        return {name: reason for name, reason in found.items() if name != reason}

    def write(self, out: Path) -> None:
        """Write it.

        Raises:
            HostError: the disk is full or not writable.
        """
        write_json(
            out / RECORD, {"jobs": self.jobs, "nodes": {name: asdict(node) for name, node in self.nodes.items()}}
        )


def read_record(out: Path) -> SweepRecord | None:
    """The record in a sweep's directory; None: there is none.

    Raises:
        DataError: it is damaged.
    """
    path = out / RECORD
    with reading(path, DataError, damaged="delete it; a sweep writes it anew"), suppress(FileNotFoundError):
        found = parse_object(path.read_bytes())
        return SweepRecord(found["jobs"], {name: NodeRecord(**node) for name, node in found["nodes"].items()})
    return None


def record_of(nodes: Iterable[Node], out: Path, jobs: int) -> SweepRecord:
    """The record a sweep begins with: what is finished, and how long that took, where an earlier one in `out` tells."""
    try:
        before = read_record(out)
    except DataError:  # it says nothing that cannot be found out again
        before = None
    known: Mapping[str, NodeRecord] = before.nodes if before else {}
    return SweepRecord(jobs, {node.name: _begun(node, out, known.get(node.name)) for node in nodes})


def _begun(node: Node, out: Path, before: NodeRecord | None) -> NodeRecord:
    finished = node.finished()
    seconds = before.seconds if before else None
    if finished and seconds is None and node.kind == "cells":
        seconds = sum(filter(None, (_trained_for(run.directory) for run in node.runs))) or None
    runs = [str(run.directory.relative_to(out)) for run in node.runs] if node.kind in ("stage1", "cells") else []
    state: State = "done" if finished else "waiting"
    log = str(node.log.relative_to(out))
    return NodeRecord(node.kind, node.method, list(node.needs), runs, log, state, None, seconds)


def _trained_for(run: Path) -> float | None:
    """Seconds that the training of a run took, where it says so."""
    try:
        seconds = RunDirectory(run).read(TRAINING).get("train_seconds")
    except FlareError:
        return None
    return float(seconds) if isinstance(seconds, int | float) else None
