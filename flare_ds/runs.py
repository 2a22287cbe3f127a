"""A run directory, read back: what was asked, how far it came, and what it scored."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flare_ds.config import Config
from flare_ds.evaluation.metrics import Outcome, outcome
from flare_ds.exceptions import DataError
from flare_ds.settings import load_config

METRICS_SCHEMA = 2


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
        stage1 = self.config.method == "lora" and not self.config.has_source
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
        return {} if self.config.method == "zero_shot" else self._json("training.json")

    @cached_property
    def outcomes(self) -> Mapping[str, Outcome]:
        """For each test example, by id, what the metric sees of it.

        Raises:
            DataError: predictions.jsonl is missing or damaged.
        """
        records = self._json_lines("predictions.jsonl")
        try:
            return {record["id"]: outcome(self.metrics["metric"], record) for record in records}
        except KeyError as error:
            problem = f"a row of {self.directory}/predictions.jsonl has no {error}"
            raise DataError(problem, fix=self._evaluate_again) from None

    @cached_property
    def train_log(self) -> list[Mapping[str, Any]]:
        """The lines of train_log.jsonl; none if training has not started."""
        return self._json_lines("train_log.jsonl") if (self.directory / "train_log.jsonl").is_file() else []

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

    def _json(self, name: str) -> Mapping[str, Any]:
        try:
            return json.loads((self.directory / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            fix = self._evaluate_again if name == "metrics.json" else f"flare-ds train {self.directory}/config.yaml"
            raise DataError(f"cannot read {self.directory / name}: {error}", fix=fix) from error

    def _json_lines(self, name: str) -> list[Mapping[str, Any]]:
        """The complete lines of a file; what follows the last newline was cut off by a crash."""
        try:
            *lines, _ = (self.directory / name).read_text(encoding="utf-8").split("\n")
            return [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {self.directory / name}: {error}", fix=self._evaluate_again) from error


def find_runs(directory: Path) -> list[RunResult]:
    """All run directories below (and at) `directory`, finished or not, by path.

    Raises:
        DataError: there are none.
        ConfigError: a saved config is damaged.
    """
    runs = [RunResult(file.parent, load_config(file)) for file in sorted(directory.rglob("config.yaml"))]
    if not runs:
        raise DataError(f"no runs below {directory}", fix="check the path; a run directory holds a config.yaml")
    return runs
