"""A run in MLflow (extra `mlflow`); MLFLOW_TRACKING_URI and the like are its own.

A run that goes on, or is scored later, is the same run there: it is found by the id in its directory.
"""

import time
from collections.abc import Mapping

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from flare_ds.config import Config
from flare_ds.tracking.tracker import Tracker, compared, run_key, run_name

_KEY = "flare_ds.run"


class OnMlflow(Tracker):
    """Logs to one run there, by a client of its own: one process may watch several runs."""

    is_service = True

    def __init__(self, config: Config, first_step: int | None) -> None:
        self.client = MlflowClient()
        experiment, key = self._experiment(config.tracking.project), run_key(config)
        found = self.client.search_runs([experiment], f"tags.`{_KEY}` = '{key}'", max_results=1)
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        tags = {_KEY: key, f"{_KEY}_dir": config.run_dir}
        run = self.client.create_run(experiment, run_name=run_name(config), tags=tags)
        self.run_id = run.info.run_id
        params = [Param(name, str(value)) for name, value in compared(config).items()]
        self.client.log_batch(self.run_id, params=params)

    def _experiment(self, project: str) -> str:
        """The id of the project's experiment; of runs that begin at once one makes it."""
        try:
            return self.client.create_experiment(project)
        except MlflowException:
            known = self.client.get_experiment_by_name(project)
            if known is None:  # that was not why
                raise
            return known.experiment_id

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.scalars`."""
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def picture(self, name: str, image_HWC: np.ndarray, step: int) -> None:
        """See `Tracker.picture`."""
        self.client.log_image(self.run_id, image_HWC, key=name, step=step)

    def text(self, name: str, markdown: str, step: int) -> None:
        """See `Tracker.text`."""
        self.client.log_text(self.run_id, markdown, f"{name}-{step}.md")

    def close(self) -> None:
        """See `Tracker.close`."""
        self.client.set_terminated(self.run_id)
