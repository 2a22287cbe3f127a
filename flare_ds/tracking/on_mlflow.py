"""A run in MLflow (extra `mlflow`); MLFLOW_TRACKING_URI and the like are its own.

A run that goes on, or is scored later, is the same run there: it is found by its directory.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from flare_ds.config import Config
from flare_ds.tracking.tracker import Tracker, compared, run_name

_DIRECTORY = "flare_ds.run_dir"


class OnMlflow(Tracker):
    """Logs to one run there, by a client of its own: one process may watch several runs.

    Args:
        config: the run's settings.
    """

    def __init__(self, config: Config) -> None:
        self.client = MlflowClient()
        project, directory = config.tracking.project, str(Path(config.run_dir).absolute())
        known = self.client.get_experiment_by_name(project)
        experiment = known.experiment_id if known else self.client.create_experiment(project)
        found = self.client.search_runs([experiment], f"tags.`{_DIRECTORY}` = '{directory}'", max_results=1)
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        run = self.client.create_run(experiment, run_name=run_name(config), tags={_DIRECTORY: directory})
        self.run_id = run.info.run_id
        params = [Param(name, str(value)) for name, value in compared(config).items()]
        self.client.log_batch(self.run_id, params=params)

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
