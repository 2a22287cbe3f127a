"""A study as it is written: variants of a run, and the questions that compare them; every run resolved and checked.

    base:       the settings all runs share, as in a sweep; model.base is tuned on the source language already
    out:        directory of the study: a run is OUT/VARIANT-seedN, the tables are OUT/tables.md
    launch:     how a distributed command starts, as in a sweep
    variants:   NAME: the settings that differ, written as on a command line
    questions:  in the order they run; each is a table of some variants, over some seeds, against one of them

A variant that two questions name is one run.
"""

import copy
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from flare_ds.config import Config
from flare_ds.config.section import Section
from flare_ds.exceptions import ConfigError
from flare_ds.overrides import apply_overrides, is_text
from flare_ds.runs import RunResult
from flare_ds.runs.changes import changes
from flare_ds.settings import load_config, parse_config
from flare_ds.sweep.grid import is_text_in_sweep
from flare_ds.yaml_file import read_yaml


class Question(Section):
    """One table."""

    title: str
    variants: list[str] = Field(min_length=1)
    against: str
    seeds: list[int] = Field(min_length=1)


class StudyFile(Section):
    """The YAML as it is written."""

    out: Path
    launch: str = Field(min_length=1)
    base: dict[str, Any]
    variants: dict[str, str]
    questions: list[Question]


@dataclass(frozen=True)
class Study:
    """A study whose runs are all resolved and checked.

    Attributes:
        file: what was asked.
        runs: every run, by variant and seed, in the order they are trained.
    """

    file: StudyFile
    runs: dict[tuple[str, int], RunResult]

    def finished(self, variant: str, seeds: Sequence[int]) -> dict[int, RunResult]:
        """The runs of a variant that are trained, by seed."""
        return {seed: self.runs[variant, seed] for seed in seeds if is_trained(self.runs[variant, seed])}


def load_study(path: Path, overrides: Sequence[str]) -> Study:
    """Read a study and resolve every run.

    Raises:
        ConfigError: a setting of the study or of a run is wrong, a question names a variant that is none, or a run
            exists already with other settings.
    """
    settings = read_yaml(path)
    apply_overrides(settings, overrides, is_text_in_sweep)
    try:
        file = StudyFile.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{path} is not a study: {error}", fix="see launchers/configs/fusion_study.yaml") from None
    runs = {}
    for variant, seed in cells(file):
        if variant not in file.variants:
            raise ConfigError(f"{path} has no variant {variant!r}", fix="add it to variants, or mend the question")
        config = resolve(file, variant, seed, origin=f"{path}, {variant}")
        runs[variant, seed] = RunResult(Path(config.run_dir), config)
    for run in runs.values():
        check_unchanged(run)
    return Study(file, runs)


def cells(file: StudyFile) -> Iterator[tuple[str, int]]:
    """Variant and seed of each run, in the order they run: question by question, seed by seed."""
    for question in file.questions:
        for seed in question.seeds:
            for variant in dict.fromkeys((question.against, *question.variants)):
                yield variant, seed


def resolve(file: StudyFile, variant: str, seed: int, *, origin: str) -> Config:
    """The settings of one run."""
    settings = copy.deepcopy(file.base)
    overrides = [*shlex.split(file.variants[variant]), f"train.seed={seed}"]
    apply_overrides(settings, overrides, partial(is_text, Config))
    settings["run_dir"] = str(file.out / f"{variant}-seed{seed}")
    return parse_config(settings, origin=origin)


def check_unchanged(run: RunResult) -> None:
    """Refuse a run directory that was made with other settings."""
    if (run.directory / "config.yaml").exists() and changes(load_config(run.directory), run.config):
        raise ConfigError(
            f"{run.directory} was trained with other settings than the study now asks for (see its config.yaml)",
            fix=f"set them back, choose another `out`, or delete {run.directory}",
        )


def is_trained(run: RunResult) -> bool:
    """Whether its training is finished; training.json is written last."""
    return (run.directory / "training.json").is_file()
