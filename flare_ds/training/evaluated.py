"""Scoring runs just trained by the best adapters of their training, in the model at hand."""

from collections.abc import Iterator, Sequence

from flare_ds.config import Config
from flare_ds.evaluation.abreast import ranked_abreast
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.evaluate import as_asked, saved_adapter, score_run
from flare_ds.evaluation.ranked import Ranked
from flare_ds.evaluation.scores import Scores
from flare_ds.exceptions import FlareError, NotFiniteError, kept
from flare_ds.runtime.filled import put_adapter
from flare_ds.runtime.rank_zero import agreed
from flare_ds.training.cell import Cell


def can_say(config: Config) -> bool:
    """Whether a model that is open to be trained has the head that scoring asks."""
    return as_asked(config).train.objective == config.train.objective


def score_trained(cells: Sequence[Cell]) -> Iterator[Scores | FlareError]:
    """Score the best adapters of runs just trained, in the model at hand.

    Yields:
        What comes of each run, in their order: its scores, or why they mean nothing or its adapter cannot be read.
    """
    refused = [_refused(cell) for cell in cells]
    able = [cell for cell, why in zip(cells, refused, strict=True) if why is None]
    asked = [Asked(cell.running, cell.cache, as_asked(cell.config), cell.states) for cell in able]
    ranked = iter(ranked_abreast(asked, "test"))
    for cell, why in zip(cells, refused, strict=True):
        yield _scored(cell, next(ranked)) if why is None else why


def _refused(cell: Cell) -> FlareError | None:
    """Give a cell its best adapter; or why it cannot be read, on all ranks alike."""
    try:
        adapter = agreed(saved_adapter, cell.config)
        assert adapter is not None, "a method that trains has one"
        put_adapter(cell.running.model, adapter)
    except FlareError as error:
        return kept(error)
    return None


def _scored(cell: Cell, ranked: Ranked | None) -> Scores | FlareError:
    try:
        return score_run(Asked(cell.running, cell.cache, cell.config, cell.states), ranked=ranked)
    except NotFiniteError as error:
        return kept(error)
