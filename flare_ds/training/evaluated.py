"""Training a run and scoring it in one launch, which loads the base once.

After the last step the best adapter takes the place of the last one in the model at hand, sharded or whole as it is.
Only where a run that ranked label words in training is to write them is the base opened anew, with its whole head.
"""

from collections.abc import Iterator, Sequence

from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.evaluation.abreast import ranked_abreast
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.evaluate import as_asked, evaluate_run, saved_adapter, score_run
from flare_ds.evaluation.ranked import Ranked
from flare_ds.evaluation.scores import Scores
from flare_ds.exceptions import FlareError, NotFiniteError, kept
from flare_ds.runs import RunDirectory
from flare_ds.runtime.engine import make_room
from flare_ds.runtime.filled import put_adapter
from flare_ds.runtime.rank_zero import agreed, on_rank_zero
from flare_ds.runtime.signals import leaving_between_batches
from flare_ds.training.cell import Cell
from flare_ds.training.trainer import Trainer


def train_and_evaluate(config: Config, cache: Cache) -> Scores:
    """Train a run to its end, unless it is trained, and score its best adapter on the test rows; a collective.

    What is left is what `train` and `evaluate` leave, one after the other. A run whose scoring fails stays trained.

    Args:
        config: the run's settings, with which it is open to be trained.
        cache: its tokens.

    Raises:
        ToBeContinued: a signal asked to stop; the state is saved.
        FlareError: see `Trainer`, `Trainer.train` and `evaluate_run`.
    """
    trainer = None
    if not on_rank_zero(lambda: RunDirectory(config.run_dir).trained):
        trainer = Trainer(config, cache)
        trainer.train()
    with leaving_between_batches():
        if trainer is None or not can_say(config):
            del trainer
            make_room()
            return evaluate_run(config, cache)
        (scores,) = score_trained([trainer])
    if isinstance(scores, FlareError):
        raise scores
    return scores


def can_say(config: Config) -> bool:
    """Whether a model that is open to be trained has the head that scoring asks."""
    return as_asked(config).train.objective == config.train.objective


def score_trained(cells: Sequence[Cell]) -> Iterator[Scores | FlareError]:
    """Score the best adapters of runs just trained, in the model at hand.

    Yields:
        What comes of each run, in their order: its scores, or why they mean nothing or its adapter cannot be read.

    Raises:
        FlareError: see `evaluate_run`.
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
