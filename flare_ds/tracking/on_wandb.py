"""A run in Weights & Biases (extra `wandb`); WANDB_MODE, WANDB_API_KEY and the like are its own.

A run that goes on, or is scored later, is the same run there: its id follows from its directory.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import wandb

from flare_ds.checksums import json_sha256
from flare_ds.config import Config
from flare_ds.tracking.tracker import Tracker, run_name


class OnWandb(Tracker):
    """Logs to one run there.

    Args:
        config: the run's settings.
    """

    def __init__(self, config: Config) -> None:
        directory = str(Path(config.run_dir).absolute())
        self.run = wandb.init(
            project=config.tracking.project,
            id=json_sha256(directory)[:16],
            name=run_name(config),
            group=config.task.target_language,
            job_type=config.method,
            config=config.model_dump(mode="json"),
            dir=directory,
            resume="allow",
            reinit="create_new",
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.scalars`."""
        self.run.log(dict(values), step=step)

    def picture(self, name: str, image_HWC: np.ndarray, step: int) -> None:
        """See `Tracker.picture`."""
        self.run.log({name: wandb.Image(image_HWC)}, step=step)

    def text(self, name: str, markdown: str, step: int) -> None:
        """See `Tracker.text`."""
        self.run.log({name: wandb.Html(f"<pre>{markdown}</pre>")}, step=step)

    def close(self) -> None:
        """See `Tracker.close`."""
        self.run.finish()
