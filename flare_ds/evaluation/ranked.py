"""Ranked label words: each row's label words scored by the model, each row exactly once on any number of ranks.

The score of a label word is the log-probability of its first token among the label words' first tokens, at the last
prompt position. All ranks run the same number of forwards (filler rows weigh 0), as ZeRO-3's gathers demand.

Legend: n rows of the split, B rows of a micro-batch, N answer positions, K label words.
"""

import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flare_ds.config import Config
from flare_ds.data.batching import evaluation_batches
from flare_ds.data.cache import Cache, CacheSplit
from flare_ds.data.collate import collate, source_streams
from flare_ds.data.states import StateStore
from flare_ds.training.engine import RunningModel
from flare_ds.training.process_group import device, gather_objects, rank, world_size


@dataclass(frozen=True)
class Scores:
    """A scored split.

    Attributes:
        log_probabilities_nK: of each label word, for each row in cache order.
        labels_n: index of the right label word.
    """

    log_probabilities_nK: np.ndarray
    labels_n: np.ndarray

    @property
    def predictions_n(self) -> np.ndarray:
        """Index of the best label word of each row."""
        return self.log_probabilities_nK.argmax(1)

    @property
    def accuracy(self) -> float:
        """Share of rows whose best label word is the right one."""
        return float((self.predictions_n == self.labels_n).mean())

    @property
    def loss(self) -> float:
        """Mean negative log-probability of the right label word."""
        return float(-self.log_probabilities_nK[np.arange(len(self.labels_n)), self.labels_n].mean())


def score_split(
    running: RunningModel, cache: Cache, split_name: str, config: Config, *, states: StateStore | None
) -> Scores:
    """Score every row of a split; a collective, with the same result on every rank.

    Args:
        running: the model.
        cache: the run's tokens.
        split_name: train, validation or test.
        config: the run's settings.
        states: the run's stored source states, if its provider stores them.
    """
    split = cache.split(split_name)
    stored = None if states is None else states.split(split_name)
    streams = streams_of(config)
    lengths = longest_prompts(split, streams)
    batches = evaluation_batches(lengths, world_size=world_size(), batch_size=config.evaluate.batch_size)[rank()]
    mine: list[tuple[int, list[float]]] = []
    running.root.eval()
    for micro_batch in tqdm(batches, desc=split_name, unit="batch", disable=rank() > 0, leave=False, file=sys.stderr):
        batch = collate(split, micro_batch, streams=streams, objective="labels", pad_id=cache.pad_id, stored=stored)
        with torch.no_grad():
            logits_BNK = running.root(batch.to(device()))
        scores_BK = label_scores(logits_BNK, cache.label_tokens, config).tolist()
        kept = zip(micro_batch.rows.tolist(), scores_BK, micro_batch.weights.tolist(), strict=True)
        mine += [(row, scores) for row, scores, weight in kept if weight]
    return _assemble([pair for part in gather_objects(mine) for pair in part], np.asarray(split.labels))


def streams_of(config: Config) -> tuple[str, ...]:
    """The cached streams a method runs: sources, unless their states are stored, and the target."""
    sources = config.sources if config.source.provider == "lockstep" else 0
    return (*source_streams(sources), "target")


def longest_prompts(split: CacheSplit, streams: tuple[str, ...]) -> np.ndarray:
    """Tokens of each row's longest prompt over the streams that run: int [n]."""
    return np.max([split.prompt_lengths(stream) for stream in streams], axis=0)


def label_scores(logits_BNK: Tensor, label_tokens: list[list[int]], config: Config) -> Tensor:
    """Log-probabilities [B, K] of the label words at the first answer position."""
    logits_BK = logits_BNK[:, 0].float()
    if config.train.objective == "vocabulary":
        logits_BK = logits_BK[:, [tokens[0] for tokens in label_tokens]]
    return logits_BK.log_softmax(-1)


def _assemble(scored: list[tuple[int, list[float]]], labels_n: np.ndarray) -> Scores:
    by_row = dict(scored)
    assert len(by_row) == len(scored) == len(labels_n), "a row was scored twice or not at all"
    return Scores(np.array([by_row[row] for row in range(len(labels_n))], np.float64), labels_n)
