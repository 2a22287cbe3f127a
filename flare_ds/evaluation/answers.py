"""Answers that the model writes: free ones, or label words; decoded, then compared with the right ones.

A text too long for one prompt is read through windows: several rows of the cache that are one example, of which most
do not hold the answer. The example's answer is that of the window whose answer the model finds likeliest, by the mean
log-probability of its tokens.

    row                0    1    2    3    4    5
    example            0    0    0    1    2    2
    log-probability  -2.1 -0.3 -1.7 -0.9 -0.8 -0.2      rows 1, 3 and 5 answer

A label word is compared as a whole (the paper's protocol). Case, ASCII punctuation and spacing do not count; everything
else does:

    written               prediction
    " Positive."          positive
    "positive review"     none, which is wrong
    ""                    none

Legend: n rows of the split, E examples.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from flare_ds.config import ModelConfig
from flare_ds.data.cache import Cache, CacheSplit
from flare_ds.data.cache.encode import Form, form_of
from flare_ds.evaluation.answerable import as_compared, label_readings
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.finite import not_finite
from flare_ds.evaluation.generate import Written, generate_split
from flare_ds.evaluation.qa import exact_match, token_f1
from flare_ds.evaluation.scores import Scores, label_figures
from flare_ds.failures import warn
from flare_ds.models.loading import load_tokenizer
from flare_ds.runtime.process_group import rank
from flare_ds.tasks.base import Metric
from flare_ds.texts import one_line


def score_answers(asked: Asked, split_name: str, *, metric: Metric) -> Scores:
    """Decode and score an answer for every example of a split; a collective, with the same result on every rank.

    The model has its whole head; the settings' `generate` says how.
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
    figures["cut_off"] = fmean(not said[row].ended for row in best)
    figures["empty"] = fmean(not said[row].text for row in best)
    figures["unsayable"] = too_long
    return Scores(metric, "generated", figures, records, not_finite_answers(split, said))


def score_generated_labels(asked: Asked, split_name: str, *, metric: Metric) -> Scores:
    """Decode an answer for every row of a split and read it as a label word; otherwise as `score_answers`."""
    split, words = asked.cache.split(split_name), asked.cache.labels
    readings = label_readings(words)
    said = written(asked, split_name)
    records = [
        {
            "id": split.ids(row),
            "cluster": int(split.clusters[row]),
            "label": words[label],
            "prediction": readings.get(as_compared(answer.text)),
            "text": answer.text,
            "log_probability": answer.log_probability,
        }
        for row, (label, answer) in enumerate(zip(split.labels, said, strict=True))
    ]
    not_a_label = fmean(record["prediction"] is None for record in records)
    cut_off = fmean(not answer.ended for answer in said)
    figures = {**label_figures(records), "not_a_label": not_a_label, "cut_off": cut_off}
    return Scores(metric, "generated", figures, records, not_finite_answers(split, said))


def best_windows(examples_n: NDArray[np.integer], log_probabilities_n: Sequence[float]) -> NDArray[np.integer]:
    """The row that answers each example: its likeliest, of equals the first: int [E]."""
    order_n = np.lexsort((-np.array(log_probabilities_n), examples_n))
    _, first_E = np.unique(examples_n[order_n], return_index=True)
    return order_n[first_E]


def not_finite_answers(split: CacheSplit, said: Sequence[Written]) -> list[str]:
    """The ids of the rows whose answer has no finite log-probability: what was written there means nothing."""
    return not_finite((split.ids(row), [answer.log_probability]) for row, answer in enumerate(said))


def written(asked: Asked, split_name: str) -> list[Written]:
    """What the model writes behind every row of a split, in cache order; a collective, see `generate_split`."""
    tokenizer = _tokenizer(asked.config.model)
    decoded = generate_split(asked, split_name)
    return [answer.written(tokenizer) for answer in decoded]


def unsayable(golds: Sequence[Sequence[str]], form: Form, most: int) -> float:
    """The share of examples of whose right answers even the shortest has more than `most` tokens, which is told."""
    texts = [one_line(gold) for of_example in golds for gold in of_example]
    lengths = iter(map(len, form.words(texts)))
    shortest = [min(next(lengths) for _ in of_example) for of_example in golds]
    if number := sum(length > most for length in shortest):
        _warn(
            f"{number:,} of {len(golds):,} right answers have more tokens than generate.max_new_tokens={most} and can "
            f"never be generated; {max(shortest)} would be enough for all"
        )
    return number / len(golds)


@cache
def _warn(message: str) -> None:
    """Say it once: a run validates many times."""
    if rank() == 0:
        warn(message)


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
