"""What a sweep would do, before it does anything."""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from flare_ds.exceptions import ConfigError
from flare_ds.human import human_age, human_size
from flare_ds.markdown import DASH, table
from flare_ds.sweep.changed import changed_runs, stale_runs
from flare_ds.sweep.inputs import check_inputs
from flare_ds.sweep.nodes import PARTS, REPORT, Node, has_cache, nodes_of
from flare_ds.sweep.plan import Plan, PlannedRun, load_sweep
from flare_ds.sweep.progress import left, typical_seconds
from flare_ds.sweep.record import SweepRecord, record_of
from flare_ds.sweep.slots import slots_of


def dry_run(path: str | Path, overrides: Sequence[str] = (), *, jobs: int = 1, only: Collection[str] = PARTS) -> str:
    """Its stages in order, what each needs, what is finished, what the others may take; nothing is written.

    Memory is that of a rank while it trains, told where the caches and the base are there.

    Args:
        path: the sweep YAML.
        overrides: `key=value` settings laid over it.
        jobs: how many commands would run at once.
        only: as of `sweep`; what is not asked for is not shown.

    Raises:
        FlareError: a setting is wrong, or data or a base is not there.
    """
    plan = load_sweep(path, overrides)
    changed = changed_runs(plan)
    stale = {run.name for run in stale_runs(plan, changed)}
    nodes = nodes_of(plan, jobs, stale)
    check_inputs(nodes, path, only)
    record = record_of(nodes, plan.out, jobs)
    typical = typical_seconds(record)
    for node in nodes:
        writes = node.kind in ("stage1", "cells")
        if any(run.name in stale and (writes or not has_cache(run.prepared)) for run in node.runs):
            record.change(node.name, state="waiting")
    lacking = record.blocked([name for name in record.of_state("waiting") if record.nodes[name].kind not in only])
    record.nodes = {name: node for name, node in record.nodes.items() if node.kind in only}
    waiting = {*record.of_state("waiting")}
    here = _refusal(plan, jobs, [node for node in nodes if node.name in waiting])
    able = waiting - lacking.keys()
    to_do = {node.name: node.runs for node in nodes if node.kind == "cells" and node.name in able}
    differs = {run.name: what for what, runs in changed.items() for run in runs}
    sizes = _memory(plan, to_do) if to_do else {}
    cells = {name: len(runs) for name, runs in to_do.items()}
    then = "; then the report" if REPORT in only else ""
    return f"{here}{_table(record, typical, differs, cells, sizes, lacking)}{then}{left(record, typical, {})}"


def _memory(plan: Plan, to_do: Mapping[str, Sequence[PlannedRun]]) -> dict[str, float | None]:
    """Bytes on each rank, by node; None: it cannot be told yet."""
    from flare_ds.sweep.memory import CellMemory  # imports transformers' models, for two seconds

    memory = CellMemory(plan)
    return {name: memory.of(runs) for name, runs in to_do.items()}


def _refusal(plan: Plan, jobs: int, to_do: Sequence[Node]) -> str:
    """Why this host cannot run it, as lines; it may be meant for another one."""
    try:
        slots_of(plan, jobs, to_do, os.environ)
    except ConfigError as error:
        return f"cannot run here: {error}\n\n"
    return ""


def _table(
    record: SweepRecord,
    typical: Mapping[str, float],
    changed: Mapping[str, str],
    cells: Mapping[str, int],
    memory: Mapping[str, float | None],
    lacking: Mapping[str, str],
) -> str:
    """What a sweep would do: its nodes in order, what each needs, what is finished, what the others may take.

    Args:
        record: with which the sweep would begin.
        typical: seconds of nodes, by method.
        changed: by run directory below that of the sweep, what differs from what is there.
        cells: by node, how many it will run.
        memory: by node, bytes on each rank.
        lacking: by node, what it needs that is neither finished nor asked for.
    """
    lines = []
    for name, node in record.nodes.items():
        seconds = node.seconds if node.state == "done" else typical.get(node.method)
        length = DASH if seconds is None else human_age(seconds)
        differs = "; ".join(dict.fromkeys(changed[run] for run in node.runs if run in changed))
        state = "finished" if node.state == "done" else f"lacks {lacking[name]}" if name in lacking else "to do"
        state = f"changed: {differs}" if differs else state
        size = memory.get(name)
        lines.append((name, ", ".join(node.needs) or DASH, state, length, DASH if size is None else human_size(size)))
    nodes = [node for name, node in record.nodes.items() if node.state != "done" and name not in lacking]
    counts = Counter(node.kind for node in nodes)
    named = {"cells": f"{sum(cells.values())} cells in {counts['cells']} commands"}
    to_do = ", ".join(named.get(kind, f"{number} {kind}") for kind, number in counts.items()) or "nothing"
    shown = table(("stage", "needs", "state", "time", "memory"), lines)
    aside = ", with --rerun changed, which moves changed runs aside (without it, the sweep is refused)"
    return f"{shown}\n\nto do{aside if changed else ''}: {to_do}"
