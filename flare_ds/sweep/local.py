"""A sweep: one YAML, every cell of its grid, continued by the same command wherever it stopped.

    plan: every run, resolved and checked  ->  nodes: what each part needs  ->  runner: several at once  ->  report

A node whose result is there is skipped. One that fails does not stop the others.
"""

import os
import shlex
import shutil
import signal
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from flare_ds.exceptions import ConfigError, HostError
from flare_ds.failures import INTERRUPTED
from flare_ds.files import disk_errors
from flare_ds.locks import hold, release
from flare_ds.processes import log_tail, say, search_path
from flare_ds.reporting import report
from flare_ds.sweep.changed import claim_directories, refuse_changed, set_changed_aside
from flare_ds.sweep.inputs import check_inputs
from flare_ds.sweep.nodes import KINDS, PARTS, REPORT, is_done, nodes_of
from flare_ds.sweep.plan import Plan, load_sweep
from flare_ds.sweep.progress import progress
from flare_ds.sweep.record import LOCK, SweepRecord, record_of
from flare_ds.sweep.runner import Runner
from flare_ds.sweep.slots import slots_of


def sweep(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    jobs: int = 1,
    only: Collection[str] = PARTS,
    rerun_changed: bool = False,
) -> int:
    """Run what is not finished of a sweep, then print the report and how long each stage took.

    Args:
        path: the sweep YAML, see `flare_ds.sweep.grid`.
        overrides: `key=value` settings laid over it.
        jobs: how many commands run at once, each on GPUs of its own or with its share of the cores.
        only: some of `PARTS`; what is not asked for is taken as it is.
        rerun_changed: move what was run with other settings aside, and run it again.

    Returns:
        Exit status: 0 when all that was asked for is finished, 1 if a stage failed or could not run, 130 after
            Ctrl-C or SIGTERM.

    Raises:
        ConfigError: a setting is wrong, a run exists already with other settings, or there are too few GPUs for the
            jobs or their ranks. Nothing has been run then.
        FlareError: data or a base is not there.
        HostError: the launcher is not installed, another sweep is writing the same directory, or the disk is full.
    """
    _check_parts(only, rerun_changed)
    plan = load_sweep(path, overrides)
    nodes = nodes_of(plan)
    to_do = (node for node in nodes if node.kind in only and (rerun_changed or not node.finished()))
    environments = slots_of(plan, jobs, to_do, os.environ)
    check_inputs(nodes, path, only)
    _check_launcher(plan, path)
    with disk_errors(plan.out):
        plan.out.mkdir(parents=True, exist_ok=True)
    with _only_one(plan.out):
        set_changed_aside(plan) if rerun_changed else refuse_changed(plan)
        claim_directories(plan)
        nodes, console = nodes_of(plan, jobs), Console()  # anew: what was moved aside is to be run
        record = record_of(nodes, plan.out, jobs)
        record.write(plan.out)
        shown = jobs == 1 and not console.is_terminal
        runner = Runner(plan.out, record, environments, only, plan.retries, shown)
        try:
            with _ended_by_sigterm(), _live(record, plan.out, console):
                runner.run(nodes)
        except KeyboardInterrupt:
            say(f"\ninterrupted; to continue, run the same command again: {_again(path, overrides, jobs, only)}")
            return INTERRUPTED
        say(f"\n{summary(runner)}")
        result = report(plan.out) if REPORT in only else None
        say(f"\n{result.text}" if result else "")
    undone = [run.name for run in plan.runs if not is_done(run, plan)] if {*KINDS} <= {*only} else []
    if undone:
        say(f"\nnot finished: {', '.join(undone)}")
    return 1 if undone or runner.failed or runner.unmet or (result and result.unreadable) else 0


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Hold a sweep's directory against a second one that would write the same runs."""
    mine = hold(out / LOCK, doing=f"is writing {out} already")
    try:
        yield
    finally:
        if mine:
            release(out / LOCK)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C: what was started is ended, and waited for. Told twice is told once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_parts(only: Collection[str], rerun_changed: bool) -> None:
    """What is moved aside must be run again in the same call."""
    if rerun_changed and (lacking := [part for part in ("stage1", "cells") if part not in only]):
        raise ConfigError(
            f"--rerun changed moves results aside, and --only {','.join(only)} leaves out {' and '.join(lacking)}, "
            "which would run them again",
            fix="leave out --only, or --rerun",
        )


def summary(runner: Runner) -> str:
    """Seconds of each stage that was run, and the end of the log of each that failed."""
    lines = ["Time by stage"]
    lines += [f"{seconds:9.1f} s  {name}" for name, seconds in runner.seconds.items()]
    lines.append(f"{sum(runner.seconds.values()):9.1f} s  in all")
    for node in runner.failed:
        lines += ["", f"FAILED: {node.name}; the end of {node.log}:", log_tail(node.log)]
    return "\n".join(lines)


@contextmanager
def _live(record: SweepRecord, out: Path, console: Console) -> Iterator[None]:
    """Meanwhile a terminal shows how far the sweep is, below what is said."""
    if not console.is_terminal:
        yield
        return
    with Live(get_renderable=lambda: Text(progress(record, out, alive=True)), console=console, refresh_per_second=1):
        yield


def _check_launcher(plan: Plan, path: str | Path) -> None:
    if shutil.which(plan.launch[0], path=search_path()) is None:
        raise HostError(
            f"launch={plan.launch[0]!r} in {path} is not a command here", fix="install it, or change launch"
        )


def _again(path: str | Path, overrides: Sequence[str], jobs: int, only: Collection[str]) -> str:
    options = [f"--jobs={jobs}"] * (jobs != 1) + [f"--only={','.join(only)}"] * (len(only) < len(PARTS))
    return shlex.join(["flare-ds", "sweep", str(path), *overrides, *options])
