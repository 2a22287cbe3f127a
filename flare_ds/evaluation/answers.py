"""Free answers: decoded, then compared with the right ones.

A text too long for one prompt is read through windows: several rows of the cache that are one example, of which most
do not hold the answer. The example's answer is that of the window whose answer the model finds likeliest, by the mean
log-probability of its tokens.

    row                0    1    2    3    4    5
    example            0    0    0    1    2    2
    log-probability  -2.1 -0.3 -1.7 -0.9 -0.8 -0.2      rows 1, 3 and 5 answer

Legend: n rows of the split, E examples.
"""

from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from flare_ds.config import ModelConfig
from flare_ds.data.cache import Cache, CacheSplit
from flare_ds.data.cache.encode import form_of
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.finite import not_finite
from flare_ds.evaluation.generate import generate_split
from flare_ds.evaluation.qa import exact_match, token_f1
from flare_ds.evaluation.sayable import unsayable
from flare_ds.evaluation.scores import Scores
from flare_ds.models.loading import load_tokenizer
from flare_ds.tasks.base import Metric


def score_answers(asked: Asked, split_name: str, *, metric: Metric) -> Scores:
    """Decode and score an answer for every example of a split; a collective, with the same result on every rank.

    Args:
        asked: the model, with its whole head, and what it reads; `generate` says how.
        split_name: train, validation or test.
        metric: the task's.
    """
    split, config = asked.cache.split(split_name), asked.config
    too_long = _unsayable(asked.cache, split_name, config.model, config.task.chat, config.generate.max_new_tokens)
    said = written(asked, split_name)
    best = best_windows(split.examples, [answer.log_probability for answer in said]).tolist()
    records = []
    for row in best:
        prediction, right = said[row].text, split.golds(row)
        records.append(
            {
                "id": split.ids(row),
                "cluster": int(split.clusters[row]),
                "answers": right,
                "prediction": prediction,
                "exact_match": exact_match(prediction, right),
                "f1": token_f1(prediction, right),
                "log_probability": said[row].log_probability,
            }
        )
    figures = {name: fmean(record[name] for record in records) for name in ("exact_match", "f1")}
    cut_off = fmean(not said[row].ended for row in best)
    figures = {**figures, "cut_off": cut_off, "unsayable": too_long}
    return Scores(metric, "generated", figures, records, not_finite_answers(split, said))


def best_windows(examples_n: NDArray[np.integer], log_probabilities_n: Sequence[float]) -> NDArray[np.integer]:
    """The row that answers each example: its likeliest, of equals the first: int [E]."""
    order_n = np.lexsort((-np.array(log_probabilities_n), examples_n))
    _, first_E = np.unique(examples_n[order_n], return_index=True)
    return order_n[first_E]


def not_finite_answers(split: CacheSplit, said: Sequence["Written"]) -> list[str]:
    """The ids of the rows whose answer has no finite log-probability: what was written there means nothing."""
    return not_finite((split.ids(row), [answer.log_probability]) for row, answer in enumerate(said))


class Written(NamedTuple):
    """An answer in words, the mean log-probability of its tokens, and whether it came to its end."""

    text: str
    log_probability: float
    ended: bool = True

    @property
    def record(self) -> dict[str, str | float]:
        """The columns of a file of predictions."""
        return {"prediction": self.text, "log_probability": self.log_probability}


def written(asked: Asked, split_name: str) -> list[Written]:
    """What the model writes behind every row of a split, in cache order; a collective, see `generate_split`."""
    tokenizer = _tokenizer(asked.config.model)
    decoded = generate_split(asked, split_name)
    return [Written(answer.text(tokenizer), answer.log_probability, answer.ended) for answer in decoded]


@lru_cache(maxsize=256)
def _unsayable(cache: Cache, split_name: str, model: ModelConfig, chat: bool, most: int) -> float:
    """The share of examples whose right answers are too long; found once: it is the same at every validation."""
    split = cache.split(split_name)
    golds = [split.golds(row) for row in np.unique(split.examples, return_index=True)[1].tolist()]
    return unsayable(golds, form_of(_tokenizer(model), chat=chat), most)


@lru_cache(maxsize=1)
def _tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """Read once: a run validates many times."""
    return load_tokenizer(model)
