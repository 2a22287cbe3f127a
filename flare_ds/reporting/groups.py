"""What the lines of a report stand for: runs that differ in nothing but their seed.

runs/pl/lora-seed1   runs/pl/lora-seed2   runs/pl/lora-seed3     one group: pl, lora
runs/pl/zero_shot-seed1                                          another: what trains nothing has no seed
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flare_ds.exceptions import DataError, FlareError
from flare_ds.json_text import parse_object
from flare_ds.methods import METHODS
from flare_ds.runs import RunResult
from flare_ds.runs.changes import FUSION, deciding
from flare_ds.scoring.metrics import Outcome
from flare_ds.tasks.base import Task
from flare_ds.tasks.load import task_of
from flare_ds.tasks.sides import are_parallel

REFERENCE = "lora"
"""The method that the others are measured against."""
_DRAWN = {"train.seed", "task.target_language", "source.mt_language"}
"""What differs between runs of one kind: in several languages, with several seeds."""
_OWN = {"method", "evaluate.late", "task.extra_source_languages", "train.source_dropout", *_DRAWN, *FUSION}
"""What methods that are compared need not share: what a method is made of, too."""
ABOUT = ("task", "base", "language", "method")
"""The columns of `Group.name`."""


@dataclass(frozen=True)
class Group:
    """Runs side by side that differ in nothing but their seed; one of them alone where nothing is trained.

    Attributes:
        runs: by seed, finished or not.
        repeats: other runs of the same seeds, which count for nothing: a run and its copy are not two draws.
        place: where it is, if another group has the same task, base, language and method.
    """

    runs: Sequence[RunResult]
    repeats: Sequence[RunResult] = ()
    place: str = ""

    @property
    def name(self) -> tuple[str, str, str, str]:
        """Task, base (what it was before stage 1), language and method, with the place: what every table calls it."""
        method = f"{self.method} ({self.place})" if self.place else self.method
        return *about(self.runs[0]), method

    @property
    def language(self) -> str:
        """The target language."""
        return self.runs[0].config.task.target_language

    @property
    def method(self) -> str:
        """What the runs do."""
        return self.runs[0].method

    @property
    def trains(self) -> bool:
        """Whether there is anything that a seed changes."""
        return self.runs[0].config.recipe.trains

    @property
    def finished(self) -> list[RunResult]:
        """The runs that are scored."""
        return [run for run in self.runs if run.finished]

    @property
    def score(self) -> float:
        """Mean over the finished runs."""
        return float(np.mean([run.metrics["score"] for run in self.finished]))

    @cached_property
    def setting(self) -> tuple[Path, str, str, str]:
        """What methods must share to be compared: place, base, task and language."""
        run = self.runs[0]
        base = next((one.contents[0] for one in self.runs if one.contents is not None), run.config.model.base)
        return run.directory.parent, base, run.config.task.name, self.language

    @property
    def label(self) -> str:
        """The method, and where several groups have it the name of its runs, which are alike in all languages."""
        return f"{self.method} ({without_seed(Path(self.place).name)})" if self.place else self.method

    @cached_property
    def kind(self) -> str:
        """What it is, in any language."""
        read = deciding(self.runs[0].settings)
        return json.dumps([self.method, {name: read[name] for name in read.keys() - _DRAWN}], sort_keys=True)

    @cached_property
    def choices(self) -> dict[str, Any]:
        """What a grid may vary for several methods: how wide an adapter is, how it is trained, on what, and scored."""
        read = deciding(self.runs[0].settings)
        return {name: read[name] for name in read.keys() - _OWN}

    @cached_property
    def rows(self) -> str | None:
        """A fingerprint of the rows that its runs read; None: none has begun, or an earlier version did not tell."""
        return next((one.contents[1] for one in self.runs if one.contents is not None), None)

    def reads_as(self, other: "Group") -> bool:
        """Whether both read the same rows, as far as is told; with further source languages they are others anyway."""
        further = [one.runs[0].config.task.extra_source_languages for one in (self, other)]
        return further[0] != further[1] or None in (self.rows, other.rows) or self.rows == other.rows

    def is_set_as(self, other: "Group") -> bool:
        """Whether all that both read of these is the same."""
        return all(self.choices[name] == other.choices[name] for name in self.choices.keys() & other.choices.keys())


def without_seed(name: str) -> str:
    """A run's name as all seeds of its setting have it."""
    return re.sub(r"-seed[0-9]+$", "", name)


def about(run: RunResult) -> tuple[str, str, str]:
    """Task, base (what it was before stage 1) and target language of a run."""
    task = run.config.task
    return task.name, Path(untuned(run.config.model.base)).name, task.target_language


def untuned(base: str) -> str:
    """What a base was before `flare-ds merge` tuned it; one that nothing was merged into is itself."""
    record = Path(base) / "merged_from.json"
    try:
        return str(parse_object(record.read_bytes())["base"])
    except (OSError, ValueError, KeyError):
        return base


def grouped(runs: Sequence[RunResult], root: Path) -> list[Group]:
    """The groups of some runs: by language, then in the order of the methods, then by path; places are below `root`."""
    lies = [_lies(run) for run in runs]
    contents = {where: run.contents for run, where in zip(runs, lies, strict=True) if run.contents is not None}
    groups: dict[str, list[RunResult]] = {}
    for run, where in zip(runs, lies, strict=True):
        settings = deciding(run.settings) | {"train.seed": None}
        what = run.contents or contents.get(where) or where
        alike = str(run.directory.parent), settings, what, run.config.source.mt_encoder
        groups.setdefault(json.dumps(alike), []).append(run)

    def order(group: Group) -> tuple[str, int, Path]:
        run = group.runs[0]
        return group.language, list(METHODS).index(run.config.method), run.directory

    found = sorted(map(_group, groups.values()), key=order)
    times = Counter(group.name for group in found)
    place = {id(group): str(group.runs[0].directory.relative_to(root)) for group in found if times[group.name] > 1}
    return [replace(group, place=place.get(id(group), "")) for group in found]


def _lies(run: RunResult) -> str:
    """Where a run finds what it reads: runs made in two places may find the same at each."""
    config = run.config
    read = config.task.model_dump(), config.translate.model_dump(), config.answers_source
    return json.dumps([config.model.base, *read], default=str)


def _group(runs: list[RunResult]) -> Group:
    """Of each seed the first that is finished; of what trains nothing one run, whatever its seed."""
    trains, by_seed = runs[0].config.recipe.trains, dict[int, list[RunResult]]()
    for run in sorted(runs, key=lambda run: (not run.finished, run.config.train.seed)):
        by_seed.setdefault(run.config.train.seed if trains else 0, []).append(run)
    of_seeds = [by_seed[seed] for seed in sorted(by_seed)]
    return Group([first for first, *_ in of_seeds], [run for _, *more in of_seeds for run in more if trains])


def declared(run: RunResult) -> Task | None:
    """The task of a run, by its own copy of the file; None: it is code, which a report does not run, or lost."""
    task = run.config.task
    if task.path is not None:
        copy = run.directory / f"task{Path(task.path).suffix}"
        task = task.model_copy(update={"path": str(copy)}) if copy.is_file() else task
    if task.is_code:
        return None
    try:
        return task_of(task)
    except FlareError:
        return None


def is_parallel(run: RunResult) -> bool:
    """Whether a scored run's rows say the same in every language; so it is taken where nobody knows any more.

    Earlier versions wrote nothing of it, or that they do not where they are translations of the source's.
    """
    told, task = run.metrics.get("parallel"), declared(run)
    if told or task is None:
        return told is not False
    return are_parallel(task, run.config.task, "test")


def references(group: Group, groups: Sequence[Group]) -> list[Group]:
    """The groups of the reference method that a group is compared with: those set alike, or else all there are.

    Of these those that read the same rows, where there is one.
    """
    found = [other for other in groups if other.method == REFERENCE and other.setting == group.setting]
    found = [other for other in found if group.is_set_as(other)] or found
    return [other for other in found if group.reads_as(other)] or found


def seeds(runs: Sequence[RunResult]) -> str:
    """Which seeds runs have, in words."""
    return ", ".join(str(run.config.train.seed) for run in runs)


def same_test(run: RunResult, other: RunResult) -> bool:
    """Whether two runs were scored on the same examples by the same metric, of answers given in the same way."""
    same_metric = all(run.metrics[name] == other.metrics[name] for name in ("metric", "answers"))
    return same_metric and run.outcomes.keys() == other.outcomes.keys() and _same_truth(run, other)


def _same_truth(run: RunResult, other: RunResult) -> bool:
    """Whether what is right is the same of each example, whatever it is called: a source has its own words for it.

    Free answers in two languages cannot be compared; then the passages are, by which rows were drawn together.
    """
    one_language = run.config.answer_language == other.config.answer_language
    ours, theirs = (run.answers, other.answers) if one_language else (run.clusters, other.clusters)
    if run.answers is not None and ours is not None and theirs is not None:
        by_row = dict(zip(other.outcomes, theirs.tolist(), strict=True))
        return [by_row[row] for row in run.outcomes] == ours.tolist()
    of_other = other.outcomes
    both = [(said, of_other[row]) for row, said in run.outcomes.items()]
    true = {(one[1], two[1]) for one, two in both if isinstance(one, tuple) and isinstance(two, tuple)}
    return len(true) == len({one for one, _ in true}) == len({two for _, two in true})


def outcomes_of(runs: Sequence[RunResult]) -> list[list[Outcome]]:
    """What the metric sees of each run's test examples, in the order of the first run's.

    Raises:
        DataError: the runs were scored on different examples, or by different metrics.
    """
    for run in runs[1:]:
        if not same_test(run, runs[0]):
            problem = f"{run.directory} and {runs[0].directory} were scored on different test rows or by other metrics"
            raise DataError(problem, fix="delete metrics.json of the older one and evaluate it again")
    return [[*map(run.outcomes.__getitem__, runs[0].outcomes)] for run in runs]


def clusters_of(runs: Sequence[RunResult]) -> NDArray[np.int64]:
    """The cluster of each test example, in the order of the first run's, as the first run says that knows them."""
    known = next(((run.outcomes, run.clusters) for run in runs if run.clusters is not None), None)
    if known is None:
        return np.arange(len(runs[0].outcomes))
    of = dict(zip(*known, strict=True))
    return np.array([of[row] for row in runs[0].outcomes])
