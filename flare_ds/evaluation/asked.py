"""What is asked: a model, the tokens of what it reads, and the settings it reads them by."""

from dataclasses import dataclass

from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.data.states import StateStore
from flare_ds.runtime.engine import AskedCell, RunningModel


@dataclass(frozen=True)
class Asked:
    """A run's model that is asked about the rows of a cache.

    Attributes:
        running: the model; of several cells over one base, this cell among the others.
        cache: its tokens.
        config: its settings.
        states: its stored source states, if its provider stores them.
    """

    running: RunningModel
    cache: Cache
    config: Config
    states: StateStore | None = None

    @property
    def number(self) -> int | None:
        """The cell's among those of the model; None: it is alone in it."""
        root = self.running.root
        return root.cell if isinstance(root, AskedCell) else None
