"""A sweep: one YAML, every cell of languages x methods x seeds, continued by the same command wherever it stopped.

The stages, each a command of its own: translate and prepare the caches; tune the task adapter, merge it into the base
and evaluate it on the source language; every cell, trained and evaluated. A stage whose result is there is skipped. A
cell that fails does not stop the others.
"""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flare_ds.exceptions import ConfigError, HostError
from flare_ds.files import disk_errors
from flare_ds.model_files.fingerprint import model_fingerprint
from flare_ds.processes import free_port, log_tail, only_one, run_logged, say, search_path
from flare_ds.reporting import report
from flare_ds.runs.changes import changes
from flare_ds.runs.directory import BASE
from flare_ds.sweep.plan import Plan, PlannedRun, load_sweep

INTERRUPTED = 130  # what a shell reports after Ctrl-C


def sweep(path: str | Path, overrides: Sequence[str] = ()) -> int:
    """Run what is not finished of a sweep, then print the report and how long each stage took.

    Args:
        path: the sweep YAML, see `flare_ds.sweep.grid`.
        overrides: `key=value` settings laid over it.

    Returns:
        Exit status: 0 when every run is finished, 1 if a stage failed, 130 after Ctrl-C.

    Raises:
        ConfigError: a setting is wrong, or a run exists already with other settings. Nothing has been run then.
        HostError: the launcher is not installed, another sweep is writing the same directory, or the disk is full.
    """
    plan = load_sweep(path, overrides)
    if shutil.which(plan.launch[0], path=search_path()) is None:
        raise HostError(
            f"launch={plan.launch[0]!r} in {path} is not a command here", fix="install it, or change launch"
        )
    with disk_errors(plan.out):
        plan.out.mkdir(parents=True, exist_ok=True)
    with only_one(plan.out):
        _claim_directories(plan)
        stages = _Stages()
        try:
            _run(plan, stages)
        except KeyboardInterrupt:
            again = shlex.join(["flare-ds", "sweep", str(path), *overrides])
            say(f"\ninterrupted; to continue, run the same command again: {again}")
            return INTERRUPTED
        say(f"\n{stages.summary()}")
        result = report(plan.out)
        say(f"\n{result.text}")
    finished = all(run.owner.finished for run in plan.runs)
    return 0 if finished and not stages.failed and not result.unreadable else 1


@dataclass(frozen=True)
class _Stage:
    """One command.

    Attributes:
        name: as it is shown.
        command: its words.
        log: where its output goes.
        finished: whether it need not be run.
        made: whether it left what it should: a launcher may end with status 0 although its ranks died.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    finished: Callable[[], bool]
    made: Callable[[], bool]


@dataclass
class _Stages:
    """Runs stages and remembers what became of them.

    Attributes:
        seconds: how long each stage took that was run.
        failed: the stages that failed.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    failed: list[_Stage] = field(default_factory=list)

    def run(self, stage: _Stage) -> bool:
        """Run a stage unless it is finished; whether it is finished now."""
        if stage.finished():
            say(f"stage {stage.name} skipped (finished)")
            return True
        # A port of its own for each command, so that two sweeps can share a machine.
        port = free_port()
        command = [word.replace("{free_port}", port) for word in stage.command]
        say(f"stage {stage.name}: {shlex.join(command)}")
        started = time.monotonic()
        status = run_logged(command, stage.log)
        seconds = self.seconds[stage.name] = time.monotonic() - started
        if status != 0 or not stage.made():
            self.failed.append(stage)
            why = f"exit status {status}" + ("" if status else ", but its results are not there")
            say(f"stage {stage.name} FAILED ({why}) after {seconds:.1f} s")
            return False
        say(f"stage {stage.name} done in {seconds:.1f} s")
        return True

    def run_all(self, stages: Sequence[_Stage]) -> bool:
        """Run stages that need one another, up to the first that fails; whether all are finished now."""
        return all(self.run(stage) for stage in stages)

    def summary(self) -> str:
        """Seconds of each stage, and the end of the log of each that failed."""
        lines = ["Time by stage"]
        lines += [f"{seconds:9.1f} s  {name}" for name, seconds in self.seconds.items()]
        lines.append(f"{sum(self.seconds.values()):9.1f} s  in all")
        for stage in self.failed:
            lines += ["", f"FAILED: {stage.name}; the end of {stage.log}:", log_tail(stage.log)]
        return "\n".join(lines)


def _claim_directories(plan: Plan) -> None:
    """Save every run's config in its directory, after checking that none holds a run with other settings."""
    _check_unchanged(plan)
    # Those under way, too: they may go on with smaller batches, say.
    for run in (run for run in plan.runs if not run.owner.finished):
        run.owner.claim(run.config)


def _check_unchanged(plan: Plan) -> None:
    """Refuse a plan under which runs that are there would be others, saying all that differs.

    Raises:
        ConfigError: naming each setting, its values, and the runs it concerns.
    """
    changed: dict[str, list[PlannedRun]] = {}
    for run in (run for run in plan.runs if (run.directory / "config.yaml").exists()):
        for name, (before, now) in changes(run.owner.config, run.config).items():
            changed.setdefault(f"{name}={before!r}, now {name}={now!r} is asked for", []).append(run)
        if _has_other_base(run):
            changed.setdefault(f"model.base of other contents than {run.config.model.base} has now", []).append(run)
    if not changed:
        return
    said = [f"{', '.join(str(run.directory) for run in runs)} was run with {what}" for what, runs in changed.items()]
    runs = [run for run in plan.runs if any(run in of_one for of_one in changed.values())]
    # Every cell grew from stage 1, so a new stage 1 cannot stand beside old cells.
    stale = [plan.out] if plan.stage1 in runs else [run.directory for run in runs]
    back = "set that back" if len(changed) > 1 else f"set {next(iter(changed)).partition('=')[0]} back"
    raise ConfigError(
        ";\n  ".join(said), fix=f"{back}, choose another `out`, or delete {' '.join(str(path) for path in stale)}"
    )


def _has_other_base(run: PlannedRun) -> bool:
    """Whether a run that has begun was made from a base whose contents are others now."""
    known = run.owner.record(BASE).get("fingerprint") if run.owner.begun else None
    return (
        known is not None and Path(run.config.model.base).is_dir() and known != model_fingerprint(run.config.model.base)
    )


def _run(plan: Plan, stages: _Stages) -> None:
    """All caches, then stage 1, which every cell needs, then the cells, which need only their own cache."""
    prepared = [run for runs in _sharing_a_cache(plan) if stages.run_all(_prepare(runs, plan)) for run in runs]
    if plan.stage1 and not (plan.stage1 in prepared and stages.run_all(_stage1(plan.stage1, plan))):
        say("stage 1 failed, so no cell can be run")
        return
    for cell in plan.cells:
        if cell.owner.finished:
            say(f"stage {cell.name} skipped (finished)")
        elif cell in prepared:
            stages.run(_cell(cell, plan))
        else:
            say(f"stage {cell.name} not run: its cache could not be prepared")


def _sharing_a_cache(plan: Plan) -> list[list[PlannedRun]]:
    """The runs, grouped by the cache they read."""
    groups: dict[tuple, list[PlannedRun]] = {}
    for run in plan.runs:
        config = run.config
        mt_encoder = config.source if config.caches_mt else None
        key = (config.task, config.translate, config.cache_dir, _tokenizer(run, plan), mt_encoder)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _tokenizer(run: PlannedRun, plan: Plan) -> str:
    """The base whose tokenizer a run uses; the tuned base, not there yet, has that of the untuned one."""
    base = run.config.model.base
    return plan.stage1.config.model.base if plan.stage1 and base == str(plan.tuned_base) else base


def _prepare(runs: Sequence[PlannedRun], plan: Plan) -> list[_Stage]:
    """The cache of some runs, and before it the translation it is made from, if it is."""
    run = runs[0]
    task = run.config.task
    languages = task.target_language if run is plan.stage1 else f"{task.source_language}-{task.target_language}"
    base = _tokenizer(run, plan)
    overrides = [] if base == run.config.model.base else [f"model.base={json.dumps(base)}"]
    stages = [("prepare", overrides)] if not task.is_translated else [("translate", []), ("prepare", overrides)]
    return [
        _Stage(
            f"{verb} {languages}",
            _single(verb, *_named(run), *words),
            run.directory / "log.txt",
            finished=lambda: all(other.owner.finished for other in runs),
            made=lambda: True,  # by our own process, whose status can be believed; a run looks for itself
        )
        for verb, words in stages
    ]


def _stage1(run: PlannedRun, plan: Plan) -> list[_Stage]:
    stage1 = plan.command("stage1", *_named(run), "--output", str(plan.tuned_base))
    evaluate = plan.command("evaluate", *_named(run))
    return [
        _left(run.name, stage1, run, plan.tuned_base.is_dir),
        _left(f"{run.name} evaluate", evaluate, run, lambda: run.owner.finished),
    ]


def _cell(run: PlannedRun, plan: Plan) -> _Stage:
    """A cell that was trained before is only evaluated."""
    words = ("train", *_named(run), "--evaluate") if run.config.recipe.trains else ("evaluate", *_named(run))
    return _left(run.name, plan.command(*words), run, lambda: run.owner.finished)


def _left(name: str, command: tuple[str, ...], run: PlannedRun, result: Callable[[], bool]) -> _Stage:
    """A stage that is done when its result is there and right, before as after."""
    return _Stage(name, command, run.directory / "log.txt", finished=result, made=result)


def _named(run: PlannedRun) -> tuple[str, ...]:
    """A run, for a verb; its task in Python is the one that the user's own file names."""
    path = run.config.task.path
    return (str(run.directory), *(("--trust-task-code",) if path is not None and path.endswith(".py") else ()))


def _single(*words: str) -> tuple[str, ...]:
    """A command of one process."""
    return (sys.executable, "-m", "flare_ds", *words)
