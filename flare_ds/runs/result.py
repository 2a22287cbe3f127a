"""A run directory, read back: what was asked, how far it came, and what it scored."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from flare_ds.config import Config
from flare_ds.exceptions import DataError
from flare_ds.runs.directory import BASE, CACHE, METRICS, TRAINING, VALIDATION_METRICS, RunDirectory
from flare_ds.scoring.metrics import Outcome, outcome
from flare_ds.scoring.predictions import PREDICTIONS, read_predictions
from flare_ds.texts import one_line
from flare_ds.versions import code_of

METRICS_SCHEMA = 3
_SCORED = ("id", "cluster", "answers", "exact_match", "label", "prediction")
"""The columns of predictions.parquet that a score is made of: a report holds those of all its runs."""


@dataclass(frozen=True)
class RunResult:
    """One run directory, with its saved, resolved config."""

    directory: Path
    config: Config

    @property
    def _run(self) -> RunDirectory:
        return RunDirectory(self.directory)

    @cached_property
    def finished(self) -> bool:
        """See `RunDirectory.finished`."""
        return self._run.finished

    @cached_property
    def settings(self) -> Config:
        """What it was scored with, which need not be what it was trained with; that, if it is not scored.

        Raises:
            DataError: metrics.json is damaged.
        """
        asked = self.metrics.get("settings") if self.finished else None
        try:
            return self.config if asked is None else Config.model_validate(asked)
        except ValidationError as error:
            problem = f"the settings in {self.directory / METRICS} are invalid: {one_line(str(error))}"
            raise DataError(problem, fix=self._evaluate_again) from None

    @property
    def method(self) -> str:
        """The method, and what is added to it; `task adapter`: a lora trained on the source language (stage 1)."""
        recipe = self.config.recipe
        stage1 = recipe.trains and not recipe.fuses and not self.config.has_source
        added = self.settings.late is not None and not recipe.late
        return "task adapter" if stage1 else f"{self.config.method} with late" if added else self.config.method

    @cached_property
    def contents(self) -> tuple[str, str] | None:
        """What the run reads, wherever it lies: fingerprints of its base and of its rows; None: it has not begun.

        Rows with free answers are others where the answer stands elsewhere in what is trained on.

        Raises:
            DataError: a record is damaged.
        """
        if not self._run.begun:
            return None
        base, fields = self._run.record(BASE).get("fingerprint"), self._run.record(CACHE).get("fields", {})
        rows = [str(fields[name]) for name in ("rows_sha256", "answers") if fields.get(name)]
        return (base, " ".join(rows)) if base and fields.get("rows_sha256") else None

    @cached_property
    def code(self) -> tuple[str | None, str | None]:
        """The code that it was begun by, and that it was scored by; None: an earlier version did not tell."""
        return self._run.code, code_of(self.metrics.get("versions"))

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """metrics.json.

        Raises:
            DataError: it is damaged, or of another schema.
        """
        metrics = self._run.read(METRICS)
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
        return self._run.read(TRAINING) if self.config.recipe.trains else {}

    @cached_property
    def validation_score(self) -> float | None:
        """The best one of its training, or that of a method that trains nothing; None: there is none, or not yet.

        Raises:
            DataError: a file is damaged.
        """
        if self.config.recipe.trains:
            return self.training.get("best_validation_score") if self._run.trained else None
        return self._run.record(VALIDATION_METRICS).get("score")

    @property
    def outcomes(self) -> Mapping[str, Outcome]:
        """For each test example, by id, what the metric sees of it.

        Raises:
            DataError: predictions.parquet is missing or damaged.
        """
        return self._scored[0]

    @property
    def clusters(self) -> NDArray[np.int64] | None:
        """The cluster of each test example, in the order and with the errors of `outcomes`; None: none was written."""
        return self._scored[1]

    @property
    def answers(self) -> NDArray[np.int64] | None:
        """A number for the right answers of each test example, as `clusters`; equal where they are.

        None: there are label words, or nobody wrote them. It means nothing in another process.
        """
        return self._scored[2]

    @cached_property
    def _scored(self) -> tuple[dict[str, Outcome], NDArray[np.int64] | None, NDArray[np.int64] | None]:
        path, metric = self.directory / PREDICTIONS, self.metrics["metric"]
        once: dict[Outcome, Outcome] = {}  # few differ, and the ids are those of other runs: each is held once
        try:
            records = read_predictions(path, _SCORED)
            seen = [(sys.intern(record["id"]), outcome(metric, record)) for record in records]
            clusters_N = _column(records, "cluster", int)
            answers_N = _column(records, "answers", lambda texts: hash(frozenset(texts)))
            return {row: once.setdefault(said, said) for row, said in seen}, clusters_N, answers_N
        except KeyError as error:
            raise DataError(f"{path} has no column {error}", fix=self._evaluate_again) from None
        except (OSError, TypeError, ValueError) as error:
            raise DataError(f"cannot read {path}: {error}", fix=self._evaluate_again) from error

    @cached_property
    def train_log(self) -> Sequence[Mapping[str, Any]]:
        """The complete lines of train_log.jsonl; none if training has not started.

        Raises:
            DataError: one of them is damaged.
        """
        return self._run.train_log()

    @property
    def progress(self) -> str:
        """How far an unfinished run came."""
        if not self._run.trained:
            return self._run.progress(self.config)
        scored = (self.directory / METRICS).is_file()
        return "trained; its scores belong to another adapter" if scored else "trained, not evaluated"

    def read_all(self) -> None:
        """Read all that a report reads.

        Raises:
            DataError: something is missing or damaged.
        """
        _ = self.train_log, self.contents, self.validation_score
        if (self.directory / METRICS).is_file():
            _ = self.metrics
        if self.finished:
            _ = self.training, self.outcomes, self.settings

    @property
    def _evaluate_again(self) -> str:
        return f"flare-ds evaluate {shlex.quote(str(self.directory))}"


def _column(records: Sequence[Mapping[str, Any]], name: str, number: Callable[[Any], int]) -> NDArray[np.int64] | None:
    """A number for each record; None where an earlier version, or another kind of answer, has no such column."""
    known = all(name in record for record in records)
    return np.array([number(record[name]) for record in records], np.int64) if known else None
