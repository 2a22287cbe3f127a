"""What scoring a split gives, the same for label words and for free answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flare_ds.scoring.metrics import OF_WORDS, Outcome, outcome, score
from flare_ds.tasks.base import Metric


@dataclass(frozen=True)
class Scores:
    """A scored split.

    Attributes:
        metric: the task's; one of the figures.
        answers: whether label words were ranked, or answers generated.
        figures: all that is measured, by name: accuracy, macro_f1 and loss or not_a_label, or exact_match and f1. Of
            what is generated, cut_off: the share of answers that came to no eos; of free answers, unsayable: the share
            of examples whose right answers are all longer than generate.max_new_tokens.
        records: a row of predictions.parquet for each example, in cache order.
        not_finite: ids of the examples whose scores are not finite; their predictions mean nothing.
    """

    metric: Metric
    answers: Literal["ranked", "generated"]
    figures: Mapping[str, float]
    records: Sequence[Mapping[str, Any]]
    not_finite: Sequence[str] = ()

    @property
    def score(self) -> float:
        """The task's metric."""
        return self.figures[self.metric]

    @property
    def standing(self) -> list[float]:
        """What adapters are compared by, the most important first.

        Exact matches are few while a model learns to answer at all, so F1 breaks their ties.
        """
        return [self.score, self.figures.get("f1", 0.0)]

    @property
    def outcomes(self) -> list[Outcome]:
        """What the metric sees of each example."""
        return [outcome(self.metric, record) for record in self.records]

    @property
    def clusters(self) -> list[int]:
        """The cluster of each example."""
        return [record["cluster"] for record in self.records]


def label_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Accuracy and macro F1 of records that hold a label and a prediction."""
    return {metric: score(metric, [outcome(metric, record) for record in records]) for metric in OF_WORDS}
