"""Ranked label words: each row's label words scored by the model.

The score of a label word is the log-probability of its first token among the label words' first tokens, at the last
prompt position. First tokens are all different (a cache of label words that share one is not built), so they tell the
words apart in one forward pass, and a word of many tokens has no worse a start than a short one.

Legend: n rows of the split, B rows of a micro-batch, N answer positions, K label words.
"""

import numpy as np
import torch
from torch import Tensor

from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.data.collate import Batch
from flare_ds.data.states import StateStore
from flare_ds.evaluation.batches import ask_each_row
from flare_ds.evaluation.finite import not_finite
from flare_ds.evaluation.scores import Scores, label_figures
from flare_ds.tasks.base import Metric
from flare_ds.training.engine import RunningModel


def score_labels(
    running: RunningModel, cache: Cache, split_name: str, config: Config, *, metric: Metric, states: StateStore | None
) -> Scores:
    """Score the label words of every row of a split; a collective, with the same result on every rank.

    Args:
        running: the model.
        cache: the run's tokens.
        split_name: train, validation or test.
        config: the run's settings.
        metric: the task's.
        states: the run's stored source states, if its provider stores them.
    """
    running.root.eval()

    @torch.no_grad()
    def ask(batch: Batch, _rows: list[int]) -> list[list[float]]:
        return label_scores(running.root(batch), cache.label_tokens, config).tolist()

    split, words = cache.split(split_name), cache.labels
    log_probabilities_nK = np.array(ask_each_row(ask, cache, split_name, config, states=states))
    records = [
        {
            "id": split.ids(row),
            "label": words[label],
            "prediction": words[int(scores_K.argmax())],
            **{f"log_probability_{word}": score for word, score in zip(words, scores_K.tolist(), strict=True)},
        }
        for row, (label, scores_K) in enumerate(zip(split.labels, log_probabilities_nK, strict=True))
    ]
    loss = -log_probabilities_nK[np.arange(len(split)), split.labels].mean()
    ids = not_finite((str(split.ids(row)), scores_K) for row, scores_K in enumerate(log_probabilities_nK.tolist()))
    return Scores(metric, "ranked", {**label_figures(records), "loss": float(loss)}, records, ids)


def label_scores(logits_BNK: Tensor, label_tokens: list[list[int]], config: Config) -> Tensor:
    """Log-probabilities [B, K] of the label words at the first answer position."""
    logits_BK = logits_BNK[:, 0].float()
    if config.train.objective == "vocabulary":
        logits_BK = logits_BK[:, [tokens[0] for tokens in label_tokens]]
    return logits_BK.log_softmax(-1)
