"""A sweep: one YAML, every cell of languages x methods x seeds, continued by the same command wherever it stopped.

The stages, each a command of its own: translate and prepare the caches; tune the task adapter, merge it into the base
and evaluate it on the source language; train and evaluate every cell. A stage whose result is there is skipped. A cell
that fails does not stop the others.
"""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flare_ds.config import Config
from flare_ds.exceptions import ConfigError, HostError
from flare_ds.files import disk_errors, write_text
from flare_ds.processes import free_port, log_tail, only_one, run_logged, search_path
from flare_ds.report import report
from flare_ds.settings import load_config
from flare_ds.sweep_config import Plan, PlannedRun, load_sweep

INTERRUPTED = 130  # what a shell reports after Ctrl-C


def sweep(path: str | Path, overrides: Sequence[str] = ()) -> int:
    """Run what is not finished of a sweep, then print the report and how long each stage took.

    Args:
        path: the sweep YAML, see `flare_ds.sweep_config`.
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
            print(f"\n{report(plan.out)}\n{stages.summary()}", flush=True)
        except KeyboardInterrupt:
            again = shlex.join(["flare-ds", "sweep", str(path), *overrides])
            print(f"\ninterrupted; to continue, run the same command again: {again}", flush=True)
            return INTERRUPTED
    finished = all((run.directory / "metrics.json").exists() for run in plan.runs)
    return 0 if finished and not stages.failed else 1


@dataclass(frozen=True)
class _Stage:
    """One command; finished once all its `results` exist."""

    name: str
    command: tuple[str, ...]
    log: Path
    results: tuple[Path, ...]

    @property
    def finished(self) -> bool:
        return all(result.exists() for result in self.results)


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
        if stage.finished:
            print(f"stage {stage.name} skipped (finished)", flush=True)
            return True
        # A port of its own for each command, so that two sweeps can share a machine.
        port = free_port()
        command = [word.replace("{free_port}", port) for word in stage.command]
        print(f"stage {stage.name}: {shlex.join(command)}", flush=True)
        started = time.monotonic()
        status = run_logged(command, stage.log)
        seconds = self.seconds[stage.name] = time.monotonic() - started
        if status != 0:
            self.failed.append(stage)
            print(f"stage {stage.name} FAILED (exit status {status}) after {seconds:.1f} s", flush=True)
            return False
        print(f"stage {stage.name} done in {seconds:.1f} s", flush=True)
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
    for run in plan.runs:
        if (run.directory / "config.yaml").exists():
            _check_unchanged(run, plan)
    # Those under way, too: they may go on with smaller batches, say.
    for run in (run for run in plan.runs if not (run.directory / "metrics.json").exists()):
        write_text(run.directory / "config.yaml", run.config.to_yaml())


def _check_unchanged(run: PlannedRun, plan: Plan) -> None:
    saved, wanted = (_flat(config) for config in (load_config(run.directory, trust_task_code=True), run.config))
    changed = [name for name in wanted if saved[name] != wanted[name]]
    if changed:
        name = changed[0]
        # Every cell grew from stage 1, so a new stage 1 cannot stand beside old cells.
        stale = plan.out if run is plan.stage1 else run.directory
        raise ConfigError(
            f"{run.directory} was run with {name}={saved[name]!r}, now {name}={wanted[name]!r} is asked for",
            fix=f"set {name} back, choose another `out`, or delete {stale}",
        )


def _flat(config: Config) -> dict[str, object]:
    """The settings that decide what comes of a run, by dotted name."""
    settings: dict[str, object] = {}
    for name, value in config.deciding().items():
        settings |= (
            {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
        )
    return settings


def _run(plan: Plan, stages: _Stages) -> None:
    """All caches, then stage 1, which every cell needs, then the cells, which need only their own cache."""
    prepared = [run for runs in _sharing_a_cache(plan) if stages.run_all(_prepare(runs, plan)) for run in runs]
    if plan.stage1 and not (plan.stage1 in prepared and stages.run_all(_stage1(plan.stage1, plan))):
        print("stage 1 failed, so no cell can be run", flush=True)
        return
    for cell in plan.cells:
        if (cell.directory / "metrics.json").exists():
            print(f"stage {cell.name} skipped (finished)", flush=True)
        elif cell in prepared:
            stages.run_all(_cell(cell, plan))
        else:
            print(f"stage {cell.name} not run: its cache could not be prepared", flush=True)


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
    results = tuple(other.directory / "metrics.json" for other in runs)
    log = run.directory / "log.txt"
    prepare = _Stage(f"prepare {languages}", _single("prepare", *_named(run), *overrides), log, results)
    if not task.is_translated:
        return [prepare]
    return [_Stage(f"translate {languages}", _single("translate", *_named(run)), log, results), prepare]


def _stage1(run: PlannedRun, plan: Plan) -> list[_Stage]:
    command = (*plan.launch, "flare_ds", "stage1", *_named(run))
    command += ("--output", str(plan.tuned_base))
    return [_Stage(run.name, command, run.directory / "log.txt", (plan.tuned_base,)), _evaluate(run, plan)]


def _cell(run: PlannedRun, plan: Plan) -> list[_Stage]:
    return [_evaluate(run, plan)] if not run.config.recipe.trains else [_train(run, plan), _evaluate(run, plan)]


def _train(run: PlannedRun, plan: Plan) -> _Stage:
    command = (*plan.launch, "flare_ds", "train", *_named(run))
    return _Stage(f"{run.name} train", command, run.directory / "log.txt", (run.directory / "training.json",))


def _evaluate(run: PlannedRun, plan: Plan) -> _Stage:
    command = (*plan.launch, "flare_ds", "evaluate", *_named(run))
    return _Stage(f"{run.name} evaluate", command, run.directory / "log.txt", (run.directory / "metrics.json",))


def _named(run: PlannedRun) -> tuple[str, ...]:
    """A run, for a verb; its task in Python is the one that the user's own file names."""
    path = run.config.task.path
    return (str(run.directory), *(("--trust-task-code",) if path is not None and path.endswith(".py") else ()))


def _single(*words: str) -> tuple[str, ...]:
    """A command of one process."""
    return (sys.executable, "-m", "flare_ds", *words)
