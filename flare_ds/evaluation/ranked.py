"""Ranked label words: each row's label words scored by the model.

The score of a label word is its log-probability among the label words: see `flare_ds.data.label_trie`. Where all their
first tokens differ, one forward over the prompts is enough; where words share tokens, those are read behind the prompt,
in a forward for each sequence of them that does not begin another. A word of many tokens has no worse a start than a
short one.

Legend: n rows of the split, B rows of a micro-batch, K label words.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flare_ds.batches.collate import Batch
from flare_ds.config import Config
from flare_ds.data.label_trie import LabelTrie, Node
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.batches import ask_each_row
from flare_ds.evaluation.finite import not_finite
from flare_ds.evaluation.late import late_scores
from flare_ds.evaluation.scores import Scores, label_figures
from flare_ds.runtime.engine import RunningModel
from flare_ds.tasks.base import Metric


@dataclass(frozen=True)
class Ranked:
    """The label words of a split's rows, scored before they are asked for (see `flare_ds.evaluation.abreast`).

    Attributes:
        log_probabilities: of each row, of each word: [n, K].
        seconds: this cell's share of the time it took.
    """

    log_probabilities: list[list[float]]
    seconds: float


def score_labels(asked: Asked, split_name: str, *, metric: Metric, ranked: Ranked | None = None) -> Scores:
    """Score the label words of every row of a split; a collective, with the same result on every rank.

    `ranked` is what the model says of the rows, where it was asked already.
    """
    running, cache, config = asked.running, asked.cache, asked.config
    trie = LabelTrie(cache.label_tokens)

    def ask(batch: Batch, _rows: list[int]) -> list[list[float]]:
        return label_scores(running, batch, trie, config).tolist()

    def ask_all(read_as: Config) -> list[list[float]]:
        if read_as is config and ranked is not None:
            return ranked.log_probabilities
        running.root.eval()
        if read_as is config:
            return ask_each_row(ask, asked, split_name)
        # The frozen base says the same of the same sources at every validation.
        known, key = running.of_sources, (cache.path, split_name, len(split))
        if key not in known:
            known[key] = ask_each_row(ask, Asked(running, cache, read_as), split_name)
        return known[key]

    split, words = cache.split(split_name), cache.labels
    labels_n = split.labels if split_name == "validation" else None
    log_probabilities_nK, weights = late_scores(ask_all, split, config, labels_n)
    records = [
        {
            "id": split.ids(row),
            "cluster": int(split.clusters[row]),
            "label": words[label],
            "prediction": words[int(scores_K.argmax())],
            **{f"log_probability_{word}": score for word, score in zip(words, scores_K.tolist(), strict=True)},
        }
        for row, (label, scores_K) in enumerate(zip(split.labels, log_probabilities_nK, strict=True))
    ]
    loss = -log_probabilities_nK[np.arange(len(split)), split.labels].mean()
    ids = not_finite((str(split.ids(row)), scores_K) for row, scores_K in enumerate(log_probabilities_nK.tolist()))
    return Scores(metric, "ranked", {**label_figures(records), "loss": float(loss), **weights}, records, ids)


@torch.no_grad()
def label_scores(running: RunningModel, batch: Batch, trie: LabelTrie, config: Config) -> Tensor:
    """Log-probabilities [B, K] of the label words; a collective, of equally many forwards on every rank.

    The model is in evaluation mode, the batch ends with the prompts, and train.objective says which logits the head
    gives.
    """
    batch, choices = batch.to(running.device), Choices(trie, config)
    for path in trie.paths:
        choices.add(path, running.root(batch.followed_by(path) if path else batch))
    return choices.label_scores()


class Choices:
    """How likely each branch is at the places where label words part, collected from forward to forward."""

    def __init__(self, trie: LabelTrie, config: Config) -> None:
        self.trie, self.of_vocabulary = trie, config.train.objective == "vocabulary"
        self._chosen: dict[Node, Tensor] = {}

    def add(self, path: tuple[int, ...], logits_BNV: Tensor) -> None:
        """Take what the model says behind the prompts and behind each token of a path."""
        for node in self.trie.nodes:
            if node.before == path[: len(node.before)]:
                tokens = node.branches if self.of_vocabulary else node.places
                self._chosen[node] = logits_BNV[:, len(node.before), list(tokens)].float().log_softmax(-1)

    def label_scores(self) -> Tensor:
        """Log-probabilities [B, K] of the label words."""
        ways = [self.trie.way(label) for label in range(len(self.trie.words))]
        words = [[self._chosen[node][:, branch] for node, branch in way if node] for way in ways]
        return torch.stack([torch.stack(parts).sum(0) for parts in words], 1)
