"""A run in TensorBoard: event files in its own directory, read by `tensorboard --logdir` of it or of all runs.

HPARAMS compares all runs by their settings, validation and test scores; CUSTOM SCALARS has a page a language.
"""

from collections.abc import Mapping

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from flare_ds.config import Config
from flare_ds.tracking.tracker import Tracker, compared

_METRICS = ("score/validation", "score/test", "loss/validation")


class OnTensorBoard(Tracker):
    """Writes events.

    Args:
        config: the run's settings.
        first_step: where the run's training begins or goes on: its settings are shown, and curves of later steps, which
            will come again, are forgotten; None: the run is scored, by an adapter that may be of an earlier step.
    """

    def __init__(self, config: Config, first_step: int | None) -> None:
        self.writer = SummaryWriter(config.run_dir, purge_step=first_step + 1 if first_step else first_step)
        if first_step is not None:
            self._describe(config)

    def _describe(self, config: Config) -> None:
        language = config.task.target_language
        parts = {name: ["Multiline", [f"by_language/{language}/{name}"]] for name in ("score", "loss")}
        self.writer.add_custom_scalars({language: parts})
        summaries: tuple[Summary, ...] = hparams(compared(config), dict.fromkeys(_METRICS, 0.0))
        assert self.writer.file_writer is not None, "it was just opened"
        for summary in summaries:
            self.writer.file_writer.add_summary(summary)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.scalars`."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, name: str, image_HWC: np.ndarray, step: int) -> None:
        """See `Tracker.picture`."""
        self.writer.add_image(name, image_HWC, step, dataformats="HWC")

    def text(self, name: str, markdown: str, step: int) -> None:
        """See `Tracker.text`."""
        self.writer.add_text(name, markdown, step)

    def close(self) -> None:
        """See `Tracker.close`."""
        self.writer.close()
