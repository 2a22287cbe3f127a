"""A run directory, read back: what was asked, how far it came, and what it scored."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flare_ds.config import Config
from flare_ds.evaluation.metrics import Outcome, outcome
from flare_ds.evaluation.predictions import PREDICTIONS, read_predictions
from flare_ds.exceptions import DataError
from flare_ds.settings import load_config

METRICS_SCHEMA = 3


@dataclass(frozen=True)
class RunResult:
    """One run directory.

    Attributes:
        directory: where it is.
        config: its saved, resolved config.
    """

    directory: Path
    config: Config

    @property
    def finished(self) -> bool:
        """Whether it has been evaluated; metrics.json is written last."""
        return (self.directory / "metrics.json").is_file()

    @property
    def method(self) -> str:
        """The method, or `task adapter` for a lora trained on the source language itself (stage 1)."""
        recipe = self.config.recipe
        stage1 = recipe.trains and not recipe.fuses and not self.config.has_source
        return "task adapter" if stage1 else self.config.method

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """metrics.json.

        Raises:
            DataError: it is damaged, or of another schema.
        """
        metrics = self._json("metrics.json")
        if metrics.get("schema") != METRICS_SCHEMA:
            problem = f"{self.directory}/metrics.json has schema {metrics.get('schema')!r}, not {METRICS_SCHEMA}"
            raise DataError(problem, fix=self._evaluate_again)
        return metrics

    @cached_property
    def training(self) -> Mapping[str, Any]:
        """training.json, or nothing for a method that trains nothing.

        Raises:
            DataError: it is damaged, or missing although the method trains.
        """
        return self._json("training.json") if self.config.recipe.trains else {}

    @cached_property
    def outcomes(self) -> Mapping[str, Outcome]:
        """For each test example, by id, what the metric sees of it.

        Raises:
            DataError: predictions.parquet is missing or damaged.
        """
        path, metric = self.directory / PREDICTIONS, self.metrics["metric"]
        try:
            return {record["id"]: outcome(metric, record) for record in read_predictions(path)}
        except KeyError as error:
            raise DataError(f"{path} has no column {error}", fix=self._evaluate_again) from None
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {path}: {error}", fix=self._evaluate_again) from error

    @cached_property
    def train_log(self) -> list[Mapping[str, Any]]:
        """The complete lines of train_log.jsonl; none if training has not started.

        Raises:
            DataError: one of them is damaged.
        """
        path = self.directory / "train_log.jsonl"
        if not path.is_file():
            return []
        try:
            *lines, _ = path.read_text(encoding="utf-8").split("\n")  # a crash cut the last off
            return [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {path}: {error}", fix=self._train_again) from error

    @property
    def progress(self) -> str:
        """How far an unfinished run came."""
        if (self.directory / "training.json").is_file():
            return "trained, not evaluated"
        steps = max((line["step"] for line in self.train_log), default=0)
        train = self.config.train
        done = (
            f"{steps} of {train.steps} steps" if train.epochs is None else f"{steps} steps of {train.epochs:g} epochs"
        )
        return f"trained {done}" if steps else "not started"

    @property
    def _evaluate_again(self) -> str:
        return f"flare-ds evaluate {self.directory}"

    @property
    def _train_again(self) -> str:
        return f"flare-ds train {self.directory}"

    def _json(self, name: str) -> Mapping[str, Any]:
        try:
            return json.loads((self.directory / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            fix = self._evaluate_again if name == "metrics.json" else self._train_again
            raise DataError(f"cannot read {self.directory / name}: {error}", fix=fix) from error


def find_runs(directory: Path) -> list[RunResult]:
    """All run directories below (and at) `directory`, finished or not, by path.

    Raises:
        DataError: there are none.
        ConfigError: a saved config is damaged.
    """
    runs = [RunResult(file.parent, load_config(file.parent)) for file in sorted(directory.rglob("config.yaml"))]
    if not runs:
        raise DataError(f"no runs below {directory}", fix="check the path; a run directory holds a config.yaml")
    return runs
