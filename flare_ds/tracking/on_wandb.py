"""A run in Weights & Biases (extra `wandb`); WANDB_MODE, WANDB_API_KEY and the like are its own.

A run that goes on, or is scored later, is the same run there: its id is kept in its directory. W&B's own count of
steps never goes back, so what belongs to an earlier step (the test scores, to the best one's) has ours as a value.
"""

import html
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import wandb

from flare_ds.config import Config
from flare_ds.tracking.tracker import Tracker, run_key, run_name

_STEP = "step"


class OnWandb(Tracker):
    """Logs to one run there."""

    is_service = True

    def __init__(self, config: Config, first_step: int | None) -> None:
        self.run = wandb.init(
            project=config.tracking.project,
            id=run_key(config),
            name=run_name(config),
            group=config.task.target_language,
            job_type=config.method,
            config=config.model_dump(mode="json"),
            dir=str(Path(config.run_dir).absolute()),
            resume="allow",
            reinit="create_new",
        )
        self.run.define_metric(_STEP)
        self.run.define_metric("*", step_metric=_STEP)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.scalars`."""
        self.run.log({**values, _STEP: step})

    def picture(self, name: str, image_HWC: np.ndarray, step: int) -> None:
        """See `Tracker.picture`."""
        self.run.log({name: wandb.Image(image_HWC), _STEP: step})

    def text(self, name: str, markdown: str, step: int) -> None:
        """See `Tracker.text`."""
        self.run.log({name: wandb.Html(f"<pre>{html.escape(markdown)}</pre>"), _STEP: step})

    def close(self) -> None:
        """See `Tracker.close`."""
        self.run.finish()
