"""Scoring a split in the way its task asks for: ranked label words, or free answers."""

from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.data.states import StateStore
from flare_ds.evaluation.answers import score_answers
from flare_ds.evaluation.ranked import score_labels
from flare_ds.evaluation.scores import Scores
from flare_ds.tasks.load import task_of
from flare_ds.training.engine import RunningModel


def score_split(
    running: RunningModel, cache: Cache, split_name: str, config: Config, *, states: StateStore | None
) -> Scores:
    """Score every example of a split; a collective, with the same result on every rank.

    Args:
        running: the model.
        cache: the run's tokens.
        split_name: train, validation or test.
        config: the run's settings.
        states: the run's stored source states, if its provider stores them.
    """
    task = task_of(config.task)
    score = score_answers if task.free_answers else score_labels
    return score(running, cache, split_name, config, metric=task.metric, states=states)
