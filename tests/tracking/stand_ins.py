"""Stand-ins for wandb and mlflow: they keep what is logged, and refuse what the real ones refuse.

wandb: the count of a run's steps never goes back; what is logged at an earlier step is dropped, also once the run was
finished and is resumed (`handlePartialHistorySync` of wandb-core).
mlflow: a name is of one experiment, whoever made it first; a value in a filter ends at its quote.
"""

import re
from types import ModuleType, SimpleNamespace
from typing import Any


class WandbRun:
    """One run, opened or resumed."""

    def __init__(self, rows: list[tuple[int, dict[str, Any]]], metrics: dict[str, str | None]) -> None:
        self.rows, self.metrics = rows, metrics
        self.current = rows[-1][0] + 1 if rows else 0

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics[name] = step_metric

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        if step is not None and step < self.current:
            return
        self.rows.append((self.current if step is None else step, data))
        self.current = self.current + 1 if step is None else step

    def finish(self) -> None:
        pass


class Wandb(ModuleType):
    """The module; `runs` and `metrics` by the id of a run."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        self.metrics: dict[str, dict[str, str | None]] = {}

    def init(self, *, id: str, resume: str, **settings: Any) -> WandbRun:
        assert resume == "allow"
        return WandbRun(self.runs.setdefault(id, []), self.metrics.setdefault(id, {}))

    def Image(self, pixels: Any) -> Any:
        return pixels

    def Html(self, data: str) -> str:
        return data


class MlflowException(Exception):
    pass


class Mlflow:
    """A server. Another job makes each experiment in the moment before ours does."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}

    def modules(self) -> dict[str, Any]:
        """What is imported of it, by name."""
        entity = SimpleNamespace(Metric=lambda *values: values, Param=lambda *values: values)
        errors = SimpleNamespace(MlflowException=MlflowException)
        module = SimpleNamespace(MlflowClient=lambda: self, entities=entity, exceptions=errors, __path__=[])
        return {"mlflow": module, "mlflow.entities": entity, "mlflow.exceptions": errors}

    def get_experiment_by_name(self, name: str) -> Any:
        known = self.experiments.get(name)
        return known and SimpleNamespace(experiment_id=known)

    def create_experiment(self, name: str) -> str:
        self.experiments.setdefault(name, "7")
        raise MlflowException(f"RESOURCE_ALREADY_EXISTS: {name}")

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> list[Any]:
        clause = re.fullmatch(r"tags\.`([^`]+)` = '([^']*)'", filter_string)
        if clause is None:
            raise MlflowException(f"Invalid clause(s) in filter string: {filter_string}")
        key, value = clause.groups()
        found = (name for name, run in self.runs.items() if run["tags"].get(key) == value)
        return [SimpleNamespace(info=SimpleNamespace(run_id=name)) for name in found][:max_results]

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
        assert experiment in self.experiments.values()
        name = str(len(self.runs))
        self.runs[name] = {"tags": tags, "metrics": [], "params": [], "texts": {}}
        return SimpleNamespace(info=SimpleNamespace(run_id=name))

    def log_batch(self, run_id: str, *, metrics: Any = (), params: Any = ()) -> None:
        self.runs[run_id]["metrics"] += metrics
        self.runs[run_id]["params"] += params

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        self.runs[run_id]["texts"][artifact_file] = text

    def log_image(self, run_id: str, image: Any, *, key: str, step: int) -> None:
        assert run_id in self.runs

    def update_run(self, run_id: str, status: str) -> None:
        assert run_id in self.runs

    def set_terminated(self, run_id: str) -> None:
        assert run_id in self.runs
