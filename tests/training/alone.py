"""A run opened to be trained by itself, whose engine and steps a test can look at."""

from typing import Any

from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.models.loading import load_shape
from flare_ds.runtime.engine import check_model
from flare_ds.runtime.rank_zero import agreed
from flare_ds.training.cell import Cell
from flare_ds.training.loop import open_cells, train_cells
from flare_ds.training.steps import take_step


class Trainer(Cell):
    """A cell that shares its engine with no other."""

    def __init__(self, config: Config, cache: Cache) -> None:
        shape = agreed(load_shape, config.model)
        agreed(check_model, config, shape)
        super().__init__(config, cache, shape)
        open_cells([self])

    def train(self) -> None:
        """Run the remaining steps and write `training.json`."""
        for failure in train_cells([self]):
            raise failure

    def step(self, step: int) -> dict[str, Any]:
        """Take one step, whatever came before; what is recorded of it."""
        self.progress.step = step
        (values,), _ = take_step(self.engine, [self], dict)
        return values
