"""Runs that have begun with other settings than a plan has: told all at once, or moved aside.

One that is only planned is planned anew. Only settings that a run's method reads count. What stands on a base goes with
the stage 1 that made it.
"""

import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from flare_ds.config import Config
from flare_ds.data.cache.key import PROBES, asked_fields
from flare_ds.exceptions import ConfigError
from flare_ds.files import disk_errors
from flare_ds.processes import say
from flare_ds.runs.changes import changes, differs
from flare_ds.runs.directory import CACHE, RunDirectory, at_place
from flare_ds.shipped import AUTO
from flare_ds.sweep.nodes import is_done
from flare_ds.sweep.plan import Plan, PlannedRun
from flare_ds.tasks.load import task_of

_OF_TASK = ("task_version", "prompt_template", "labels", PROBES)
"""Of a cache's key, what a task of one's own says, and may say otherwise under the same settings."""
ASIDE = ".aside"
"""Below the directory of the sweep, where no report looks."""


def changed_runs(plan: Plan) -> dict[str, list[PlannedRun]]:
    """The runs that have begun and would be others, by what differs."""
    found: dict[str, list[PlannedRun]] = {}
    for run in plan.runs:
        if said := [*_settings(run), *_task(run), *_base(run)]:
            found.setdefault("; ".join(said), []).append(run)
    return found


def stale_runs(plan: Plan, changed: dict[str, list[PlannedRun]]) -> list[PlannedRun]:
    """Those that cannot stay: the changed ones, and what grew from a changed stage 1."""
    runs = [run for of_one in changed.values() for run in of_one]
    return [run for run in plan.runs if run in runs or run.stage1 in runs]


def refuse_changed(plan: Plan) -> None:
    """Refuse a plan under which runs that are there would be others, saying all that differs.

    Raises:
        ConfigError: naming each setting, its values, and the runs it concerns.
    """
    changed = changed_runs(plan)
    if not changed:
        return
    said = [f"{', '.join(str(run.directory) for run in runs)} was run with {what}" for what, runs in changed.items()]
    raise ConfigError(
        ";\n  ".join(said),
        fix=f"{_back(changed)}, choose another `out`, or move those runs aside and run them again: --rerun changed",
    )


def _back(changed: dict[str, list[PlannedRun]]) -> str:
    """How to make the runs again what they were."""
    settings = {one.partition("=")[0].partition(" ")[0] for what in changed for one in what.split("; ")}
    if settings == {"model.base"}:  # what it names has other contents, or is gone
        bases = dict.fromkeys(run.config.model.base for runs in changed.values() for run in runs)
        return f"put {shlex.join(bases)} back"
    return "set that back" if len(settings) > 1 else f"set {settings.pop()} back"


def set_changed_aside(plan: Plan) -> None:
    """Move such runs to a directory named by the time, below `.aside` in that of the sweep.

    Raises:
        HostError: a process writes one of them; nothing has been moved then.
    """
    changed = changed_runs(plan)
    place = plan.out / ASIDE / time.strftime("%Y-%m-%dT%H-%M-%S")
    stale = list(dict.fromkeys(_directories(stale_runs(plan, changed), plan)))
    for path in stale:
        RunDirectory(path).check_unwritten()
    for what, runs in changed.items():
        say(f"{', '.join(run.name for run in runs)}: {what}")
    for path in stale:
        there = place / path.absolute().relative_to(plan.out.absolute())
        with disk_errors(there):
            there.parent.mkdir(parents=True, exist_ok=True)
            path.rename(there)
    if changed:
        say(f"moved aside, to {place}")


def claim_directories(plan: Plan) -> None:
    """Save the config of every run that is not done in its directory.

    Raises:
        HostError: a process writes one that is to go on otherwise.
    """
    # Those under way, too: they may go on with smaller batches, say; and planned ones with anything.
    for run in plan.runs:
        config, is_there = _settled(run), (run.directory / "config.yaml").exists()
        same = is_there and not differs(run.owner.config, at_place(config))
        if not (is_done(run, plan) or same):
            run.owner.check_unwritten()
            run.owner.claim(config)


def _settled(run: PlannedRun) -> Config:
    """Its settings; `deepspeed: auto` of a run that has begun is what it became then."""
    if run.config.deepspeed != AUTO or not run.owner.begun:
        return run.config
    return run.config.model_copy(update={"deepspeed": run.owner.config.deepspeed})


def _settings(run: PlannedRun) -> list[str]:
    differ = changes(run.owner.config, run.config) if run.owner.begun else {}
    return [f"{name}={before!r}, but the sweep now has {name}={now!r}" for name, (before, now) in differ.items()]


def _task(run: PlannedRun) -> list[str]:
    """What the task of a run that has begun says otherwise by now; a comment that was edited changes nothing."""
    known = run.owner.record(CACHE).get("fields", {}) if run.owner.begun else {}
    if not known:
        return []
    now = asked_fields(run.config, task_of(run.config.task))
    names = [name for name in _OF_TASK if name in known and known[name] != now[name]]
    return [f"{name}={known[name]!r:.80}, but the task now has {name}={now[name]!r:.80}" for name in names]


def _base(run: PlannedRun) -> list[str]:
    """What became of the base that a run has begun on, where that is no more."""
    if run.is_of_another_base:
        return [f"model.base={run.config.model.base} before its contents changed"]
    maker = run.maker
    if maker is None or maker.merged.exists() or maker.owner.begun or not run.owner.begun:
        return []  # a stage 1 that has begun makes the same again, or is itself among those that have changed
    return [f"model.base from before {maker.merged}, which is still to be made"]


def _directories(runs: Sequence[PlannedRun], plan: Plan) -> Iterator[Path]:
    """What there is of some runs, and the base that a stage 1 among them made.

    What others stand on comes last: as long as it is there it tells that they are changed, if moving breaks off.
    """
    for run in reversed(runs):
        merged = [run.merged] if run in plan.stages1 else []
        yield from (path for path in (*merged, run.directory) if path.exists())
