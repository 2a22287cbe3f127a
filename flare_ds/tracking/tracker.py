"""What a place where runs are watched has to be able to do."""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from flare_ds.config import Config
from flare_ds.files import write_text
from flare_ds.nested_settings import flat

COMPARED = {
    "cell.language": "task.target_language",
    "cell.method": "method",
    "cell.seed": "train.seed",
    **{
        f"setting.{name}": name
        for name in (
            "adapter.r",
            "adapter.alpha",
            "adapter.fusion",
            "adapter.pairing",
            "adapter.source_down",
            "model.base",
            "model.dtype",
            "task.name",
            "task.train_rows",
            "train.steps",
            "train.batch_size",
            "train.learning_rate",
        )
    },
}
"""Settings that runs are compared by, under the names that are shown: in a table of few columns a cell's come first.

They are the same for every method, as a table has the same columns for all.
"""


_ID = "tracked_as.txt"


class Tracker(ABC):
    """One run in one such place; it belongs to one process, and is closed at the end.

    Attributes:
        is_service: whether it speaks to another host, which may be gone for a while.
    """

    is_service: ClassVar[bool] = False

    @abstractmethod
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add numbers, by `group/name`, to their curves."""

    @abstractmethod
    def picture(self, name: str, image_HWC: np.ndarray, step: int) -> None:
        """Show an image of bytes [height, width, 3]."""

    @abstractmethod
    def text(self, name: str, markdown: str, step: int) -> None:
        """Show a text."""

    @abstractmethod
    def close(self) -> None:
        """Write what is not written yet."""


def compared(config: Config) -> dict[str, str | int | float]:
    """The settings of `COMPARED`, by the names that are shown; what is not set is a dash."""
    settings = flat(config.model_dump(mode="json"))
    return {shown: "-" if settings[name] is None else settings[name] for shown, name in COMPARED.items()}


def run_name(config: Config) -> str:
    """What a run is called among others: the last two parts of its directory, as a sweep lays them out."""
    return "/".join(config.run_dir.rstrip("/").split("/")[-2:])


def run_key(config: Config) -> str:
    """What a run is known by where it is watched: drawn once, and kept in its directory.

    Its path would not do: every container has a /workspace/runs, and a run that was deleted is another one.
    """
    path = Path(config.run_dir) / _ID
    if not path.is_file():
        write_text(path, f"{secrets.token_hex(8)}\n")
    return path.read_text(encoding="ascii").strip()
