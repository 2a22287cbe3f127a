"""Working through a graph: each node as soon as what it needs is finished, several at once, in the order of the plan.

A node that fails blocks those that need it, and no others; of cells that train together only those that need it.
"""

import heapq
import shlex
import signal
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path

from flare_ds.processes import free_port, log_reason, run_logged, say
from flare_ds.sweep.nodes import Node
from flare_ds.sweep.record import SweepRecord, record_of


@dataclass
class Runner:
    """Runs the nodes of a sweep.

    Attributes:
        out: directory of the sweep.
        record: of these nodes.
        slots: the environment of each of the jobs that run at once.
        only: the kinds of nodes that are run; others are taken as they are.
        retries: how often a command that failed is tried again.
        shown: whether the commands' output goes to the console.
        failed: the nodes that failed.
        unmet: names of those that were asked for, but need what `only` leaves out.
        seconds: how long each node took that was run.
    """

    out: Path
    record: SweepRecord
    slots: Sequence[dict[str, str]]
    only: Collection[str]
    retries: int
    shown: bool
    failed: list[Node] = field(default_factory=list)
    unmet: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, nodes: Sequence[Node]) -> None:
        """Run what is not finished, and say of each node what becomes of it.

        Raises:
            HostError: a command cannot be started, or a log cannot be written.
        """
        places = {node.name: place for place, node in enumerate(nodes)}
        # To the graph a node is done when it has ended, well or not, or will not start.
        graph = TopologicalSorter({node.name: node.needs for node in nodes})
        graph.prepare()
        ready: list[int] = []
        running: dict[Future[str], tuple[str, Node, dict[str, str]]] = {}
        free = list(self.slots)
        with _pool(len(free)) as (pool, stop):
            while True:
                for name in graph.get_ready():
                    heapq.heappush(ready, places[name])
                if ready and free:
                    whole = nodes[heapq.heappop(ready)]
                    node = self._able(whole)
                    if not self._finished(node) and node.kind in self.only and self._has_all(node):
                        slot = free.pop(0)
                        running[self._start(node, slot, pool, stop)] = whole.name, node, slot
                    else:
                        graph.done(whole.name)
                elif running:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        name, node, slot = running.pop(future)
                        free.append(slot)
                        self._end(node, future.result())
                        graph.done(name)
                else:
                    break
        self._say_what_waits()

    def _say_what_waits(self) -> None:
        """Say what was not run, and why."""
        blocked, nodes = self.record.blocked(), self.record.nodes
        for name, failed in blocked.items():
            say(f"stage {name} not run: it needs {failed}, which failed")
        left_out = [name for name in self.record.of_state("waiting") if nodes[name].kind not in self.only]
        for name, need in self.record.blocked(left_out).items():
            if name not in blocked:
                self.unmet.append(name)
                say(f"stage {name} not run: it needs {need}, which is not finished, and --only leaves it out")

    def _has_all(self, node: Node) -> bool:
        """Whether what it needs is there."""
        return all(self.record.nodes[need].state == "done" for need in node.needs)

    def _able(self, node: Node) -> Node:
        """A node; of cells that train together those that can, if the others wait in vain. They are two nodes then."""
        if node.part is None or self._has_all(node):
            return node
        left = node.left()
        able = [run for run in left if self._has_all(node.part((run,)))]
        if not able:
            return node
        waiting = [run for run in left if run not in able]
        parts = [node.part(tuple(runs)) for runs in (able, waiting) if runs]
        self.record.divide(node.name, record_of(parts, self.out, self.record.jobs).nodes)
        return parts[0]

    def _finished(self, node: Node) -> bool:
        if not node.finished():
            return False
        say(f"stage {node.name} skipped (finished)")
        if self.record.nodes[node.name].state != "done":
            self.record.change(node.name, state="done")
        return True

    def _start(
        self, node: Node, slot: dict[str, str], pool: ThreadPoolExecutor, stop: threading.Event
    ) -> "Future[str]":
        say(f"stage {node.name}: {shlex.join(node.command())}")
        self.record.start(node.name)
        self.record.write(self.out)
        return pool.submit(self._work, node, slot, stop)

    def _work(self, node: Node, slot: dict[str, str], stop: threading.Event) -> str:
        """Run a node's command, and again if it fails; why it failed in the end, if it did."""
        why = ""
        for left in reversed(range(self.retries + 1)):
            # A port of its own for each command, so that two can share a machine.
            port = free_port()
            command = [word.replace("{free_port}", port) for word in node.command()]
            status = run_logged(command, node.log, environment=slot, shown=self.shown, stop=stop)
            if status == 0 and node.made:
                return ""
            why = f"exit status {status}" + ("" if status else ", but its results are not there")
            if left:
                say(f"stage {node.name} failed ({why}) and is tried again")
        return why

    def _end(self, node: Node, why: str) -> None:
        seconds = self.record.end(node.name, f"{log_reason(node.log)} ({why})" if why else "")
        self.record.write(self.out)
        self.seconds[node.name] = seconds
        if why:
            self.failed.append(node)
            say(f"stage {node.name} FAILED ({why}) after {seconds:.1f} s")
        else:
            say(f"stage {node.name} done in {seconds:.1f} s")


@contextmanager
def _pool(workers: int) -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Threads that wait for commands, and what ends these commands when we are ended."""
    stop, pool = threading.Event(), ThreadPoolExecutor(workers)
    try:
        yield pool, stop
    except BaseException:
        stop.set()
        raise
    finally:
        # A second, impatient signal must not cut this short: for at most twice the patience that commands have.
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        pool.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)
