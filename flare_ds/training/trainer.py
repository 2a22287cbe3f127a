"""Training one run alone."""

from typing import Any

from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.training.cell import Cell
from flare_ds.training.loop import open_cells, train_cells
from flare_ds.training.steps import take_step


class Trainer(Cell):
    """Trains the adapter of one run directory, from the start or from its last saved state.

    Args:
        config: the run's settings; `config.method` must train something.
        cache: the run's token cache.

    Raises:
        FlareError: see `Cell` and `open_cells`.
    """

    def __init__(self, config: Config, cache: Cache) -> None:
        super().__init__(config, cache)
        open_cells([self])

    def train(self) -> None:
        """Run the remaining steps and write `training.json`.

        Raises:
            NotFiniteError: three steps in a row had no finite loss or gradient; or see `refuse_untrained` and
                `Validation.before_training`.
            ToBeContinued: a signal asked it to stop; the state is saved.
        """
        for failure in train_cells([self]):
            raise failure

    def step(self, step: int) -> dict[str, Any]:
        """Take one step, whatever came before; what is recorded of it."""
        self.progress.step = step
        (values,), _ = take_step(self.engine, [self], dict)
        return values
