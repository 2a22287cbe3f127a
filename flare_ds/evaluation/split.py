"""Scoring a split in the way its task and the settings ask for: label words, ranked or generated, or free answers."""

from flare_ds.evaluation.answerable import generates
from flare_ds.evaluation.answers import score_answers, score_generated_labels
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.ranked import Ranked, score_labels
from flare_ds.evaluation.scores import Scores
from flare_ds.tasks.load import task_of


def score_split(asked: Asked, split_name: str, *, ranked: Ranked | None = None) -> Scores:
    """Score every example of a split; a collective, with the same result on every rank.

    Validation under train.objective=labels ranks the label words, whatever `evaluate.answers` says of the test rows.
    For `ranked` see `score_labels`.
    """
    task = task_of(asked.config.task)
    if not generates(asked.config):
        return score_labels(asked, split_name, metric=task.metric, ranked=ranked)
    score = score_answers if task.free_answers else score_generated_labels
    return score(asked, split_name, metric=task.metric)
