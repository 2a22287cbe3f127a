"""Scoring a split in the way its task and the settings ask for: label words, ranked or generated, or free answers."""

from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.data.states import StateStore
from flare_ds.evaluation.answerable import generates
from flare_ds.evaluation.answers import score_answers
from flare_ds.evaluation.generated_labels import score_generated_labels
from flare_ds.evaluation.ranked import Ranked, score_labels
from flare_ds.evaluation.scores import Scores
from flare_ds.runtime.engine import RunningModel
from flare_ds.tasks.load import task_of


def score_split(
    running: RunningModel,
    cache: Cache,
    split_name: str,
    config: Config,
    *,
    states: StateStore | None,
    ranked: Ranked | None = None,
) -> Scores:
    """Score every example of a split; a collective, with the same result on every rank.

    Validation under train.objective=labels ranks the label words, whatever `evaluate.answers` says of the test rows.

    Args:
        running: the model.
        cache: the run's tokens.
        split_name: train, validation or test.
        config: the run's settings.
        states: the run's stored source states, if its provider stores them.
        ranked: see `score_labels`.
    """
    task = task_of(config.task)
    if not generates(config):
        return score_labels(running, cache, split_name, config, metric=task.metric, states=states, ranked=ranked)
    score = score_answers if task.free_answers else score_generated_labels
    return score(running, cache, split_name, config, metric=task.metric, states=states)
