"""What a sweep will run: every run resolved and checked, before the first command starts."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flare_ds.config import Config, TaskConfig
from flare_ds.evaluation.answerable import check_answers
from flare_ds.exceptions import Asking, ConfigError, DataError, together
from flare_ds.failures import say
from flare_ds.host import visible_gpus
from flare_ds.methods import METHODS
from flare_ds.nested_settings import flat, merged, nested
from flare_ds.precision import AUTO
from flare_ds.runs import RunDirectory
from flare_ds.runs.changes import is_read
from flare_ds.runs.directory import BASE
from flare_ds.settings import parse_config
from flare_ds.sweep.axes import Cell, suffix
from flare_ds.sweep.grid import Settings, SweepConfig, launch_words, read_sweep
from flare_ds.tasks.base import Task
from flare_ds.tasks.load import check_languages, task_of

_GRID_OR_BASE = "grid.languages, base.task.source_language"


@dataclass(frozen=True)
class PlannedRun:
    """One run of the sweep, resolved; its directory is `config.run_dir`.

    Attributes:
        name: as it is shown: its directory below that of the sweep.
        config: its settings.
        method: what the grid calls its method: a method, or a variant.
        place: what `name` begins with for all runs of its model and task.
        stage1: the run whose merged base it stands on, if the sweep has one.
    """

    name: str
    config: Config
    method: str
    place: Path
    stage1: "PlannedRun | None" = None

    @property
    def directory(self) -> Path:
        """Where the run writes."""
        return Path(self.config.run_dir)

    @property
    def owner(self) -> RunDirectory:
        """Of that directory."""
        return RunDirectory(self.config.run_dir)

    @property
    def merged(self) -> Path:
        """Where the base goes that stage 1 makes."""
        return self.directory.absolute().with_name("base")

    @property
    def maker(self) -> "PlannedRun | None":
        """The stage 1 that makes its base; None: that is there before the sweep."""
        stage1 = self.stage1
        return stage1 if stage1 is not None and self.config.model.base == str(stage1.merged) else None

    @property
    def tokenizer_base(self) -> str:
        """The base whose tokenizer it uses; the tuned base, not there yet, has that of the untuned one."""
        return (self.maker or self).config.model.base

    @property
    def is_of_another_base(self) -> bool:
        """Whether it has begun, on a base whose contents were others than they are now."""
        from flare_ds.model_files.fingerprint import are_different, model_fingerprint  # imports transformers

        base, known = self.config.model.base, self.owner.record(BASE).get("fingerprint") if self.owner.begun else None
        return known is not None and Path(base).is_dir() and are_different(known, model_fingerprint(base))

    @property
    def prepared(self) -> Config:
        """Its settings over that base: those with which its cache is asked for before the tuned one is there."""
        return self.config.having("model", base=self.tokenizer_base)


@dataclass(frozen=True)
class Plan:
    """The sweep, resolved: what will run, where, from which base.

    Attributes:
        out: directory of the sweep.
        launch: the first words of a command on several ranks.
        ranks: how many such a command starts itself, where `launch` does not.
        stages1: the runs that tune a task adapter: one for each model and task, if the sweep has a stage 1.
        cells: in the order they run.
        score: the rows that finished cells are judged by.
        together: how many cells train in one job.
        retries: how often a command that failed is tried again.
    """

    out: Path
    launch: tuple[str, ...]
    ranks: int | Literal["all"] | None
    stages1: tuple[PlannedRun, ...]
    cells: tuple[PlannedRun, ...]
    score: Literal["test", "validation"]
    together: int | Literal["auto"]
    retries: int

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """The stages 1, if there are any, and the cells."""
        return (*self.stages1, *self.cells)

    def command(self, *words: str) -> tuple[str, ...]:
        """The words that start a verb on several ranks."""
        ranks = () if self.ranks is None else ("--ranks", str(self.ranks))
        return (*self.launch, "flare_ds", *words, *ranks)


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a sweep YAML, apply overrides such as `grid.languages=[pl, es]`, and resolve and check every run.

    Raises:
        ConfigError: a setting of the sweep or of a run is unknown, mistyped, out of range or set in the wrong place,
            two cells have one name, the task lacks one of the languages, or a run cannot give its answers.
    """
    config = read_sweep(path, overrides)
    plan = _Resolver(config, str(path)).plan()
    asked, tasks = Asking(), dict[tuple[str, str | None], Task]()
    for run in plan.runs:
        named = (run.config.task.name, run.config.task.path)
        task = tasks.get(named) or tasks.setdefault(named, task_of(run.config.task))
        asked.of(_check_languages, task, run.config.task)
        asked.of(check_answers, run.config, task)
    # Where they concern all runs the same problems come up in each.
    if wrong := {error.problem: error for error in asked.wrong}:
        raise together([*wrong.values()], str(path))
    return plan


@dataclass(frozen=True)
class _Resolver:
    """Makes runs of what a sweep says."""

    config: SweepConfig
    origin: str  # the YAML's name
    guessed: set[str] = field(default_factory=set)  # what `model.dtype: auto` has become here, where a run has it

    def plan(self) -> Plan:
        config, stages1 = self.config, dict[tuple[str | None, str | None], PlannedRun]()
        cells: dict[str, PlannedRun] = {}
        for cell in (cell for grid in config.all_grids for cell in grid.cells(config.tasks, config.models)):
            place = (cell.model, cell.task)
            if config.stage1 is not None and place not in stages1:
                stages1[place] = self._stage1(cell)
            run = self._cell(cell, stages1.get(place))
            if (first := cells.setdefault(run.name, run)) is not run:
                self._check_namesake(run, first)
        self._tell_dtype()
        launch = (sys.executable, "-m") if config.launch is None else launch_words(config.launch)
        runs = tuple(stages1.values()), tuple(cells.values())
        return Plan(Path(config.out), launch, config.ranks, *runs, config.score, config.together, config.retries)

    def _cell(self, cell: Cell, stage1: PlannedRun | None) -> PlannedRun:
        config, method = self.config, self.config.method_of(cell.method)
        # What trains nothing is the same under every seed.
        seed = cell.seed if METHODS.get(method).trains else config.grid.seeds[0]
        below = merged(
            self._shared(cell),
            {} if stage1 is None else {"model": {"base": str(stage1.merged)}},
            config.methods.get(method, {}),
            config.variants.get(cell.method, {}),
        )
        own = {"method": method, "task": {"target_language": cell.language}, "train": {"seed": seed}}
        place = _directory(cell) / cell.language
        resolved = self._parse(merged(below, nested(cell.choices), own), f"{place}/{cell.method}-seed{seed}")
        read = {name: value for name, value in cell.choices.items() if is_read(name, resolved)}
        name = f"{place}/{cell.method}{suffix(read)}-seed{seed}"
        if len(read) < len(cell.choices):
            # task.train_rows stays: it reads the cache of the cell beside it, and none of all rows is made for it.
            kept = {name: value for name, value in cell.choices.items() if name in read or name.startswith("task.")}
            resolved = self._parse(merged(below, nested(kept), own), name)
        return PlannedRun(name, self._at(resolved, name), cell.method, _directory(cell), stage1)

    def _stage1(self, cell: Cell) -> PlannedRun:
        settings = merged(self._shared(cell), self.config.stage1 or {}, {"method": "lora"})
        default = TaskConfig.model_fields["source_language"].default
        language = settings.get("task", {}).get("source_language", default)
        alone = {"task": {"target_language": language, "extra_source_languages": []}, "evaluate": {"late": None}}
        settings = merged(settings, alone)
        name = str(_directory(cell) / "stage1")
        return PlannedRun(name, self._at(self._parse(settings, name), name), "task adapter", _directory(cell))

    def _shared(self, cell: Cell) -> Settings:
        """What all runs of a model and a task share; a task is called what it is, unless something says otherwise."""
        config = self.config
        named: Settings = {} if cell.task is None else {"task": {"name": cell.task}}
        of_model = {} if cell.model is None else config.models[cell.model]
        of_task = {} if cell.task is None else config.tasks[cell.task]
        return merged(named, config.base, of_model, of_task)

    def _parse(self, settings: Settings, name: str) -> Config:
        where = "stage1" if name.endswith("stage1") else f"cell {name}"
        config = parse_config(settings | {"run_dir": name}, origin=f"{self.origin}, {where}", section="base.")
        if settings["model"].get("dtype", AUTO) == AUTO:
            self.guessed.add(config.model.dtype)
        return config

    def _tell_dtype(self) -> None:
        """Say what `model.dtype: auto` is, where the runs may well be started on hosts of another kind."""
        cpu_is_meant = os.environ.get("DS_ACCELERATOR") == "cpu"
        if not self.guessed or self.config.launch is None or cpu_is_meant or visible_gpus():
            return
        for dtype in self.guessed:
            told = f"model.dtype=auto becomes {dtype} on this host, which sees no GPU"
            fix = "set base.model.dtype if launch starts runs on other hosts, or DS_ACCELERATOR=cpu if not"
            say(f"{told}\n  fix: {fix}")

    def _at(self, config: Config, name: str) -> Config:
        return config.model_copy(update={"run_dir": str(Path(self.config.out) / name)})

    def _check_namesake(self, run: PlannedRun, first: PlannedRun) -> None:
        one, other = flat(first.config.model_dump(mode="json")), flat(run.config.model_dump(mode="json"))
        apart = [name for name in one if one[name] != other[name] and is_read(name, run.config)]
        differ = [f"{name}={one[name]!r:.80} and {other[name]!r:.80}" for name in apart]
        if differ:
            setting = f"{apart[0]}: {one[apart[0]]!r:.80}"
            fix = f"leave {apart[0]} out of the grid, and name each value in variants: NAME: {{method: ..., {setting}}}"
            raise ConfigError(f"two cells of {self.origin} would be {run.name}: {', '.join(differ)}", fix=fix)


def _directory(cell: Cell) -> Path:
    return Path(*(part for part in (cell.model, cell.task) if part is not None))


def _check_languages(task: Task, config: TaskConfig) -> None:
    try:
        check_languages(task, config)
    except DataError as error:
        raise ConfigError(f"{error.problem} ({_GRID_OR_BASE})", fix=error.fix) from error
