"""Predicting one free text, or a pair of texts: the only place that tokenizes at run time."""

from dataclasses import dataclass

import numpy as np
import torch

from flare_ds.config import Config
from flare_ds.data.batching import MicroBatch
from flare_ds.data.cache.encode import PromptEncoder, label_tokens
from flare_ds.data.collate import collate
from flare_ds.evaluation.evaluate import open_trained
from flare_ds.evaluation.ranked import label_scores, streams_of
from flare_ds.exceptions import ConfigError
from flare_ds.models.loading import load_tokenizer
from flare_ds.tasks import TASKS
from flare_ds.training.process_group import device, join_process_group


@dataclass(frozen=True)
class FreeTexts:
    """One example given on the command line, with what `collate` reads of a cached split."""

    prompts: dict[str, list[int]]
    labels: np.ndarray

    def prompt(self, stream: str, row: int) -> np.ndarray:
        """Prompt tokens of a stream."""
        return np.array(self.prompts[stream], np.int64)

    def answer(self, stream: str, row: int) -> np.ndarray:
        """No answer is known; one placeholder, which is never an input."""
        return np.zeros(1, np.int64)


def predict(config: Config, *, target: str, source: str | None) -> dict[str, float]:
    """Probability of each label word for a text in the target language.

    Args:
        config: of a trained run, or of zero_shot.
        target: the text.
        source: the same text in the source language; needed by flare.

    Raises:
        ConfigError: flare without a source text, or a text that is empty.
        CheckpointError: the run has no adapter that fits.
    """
    task = TASKS.get(config.task.name)
    texts = {"source": source or "", "target": target}
    for stream in streams_of(config):
        if not texts[stream]:
            raise ConfigError(f"method={config.method} needs a {stream} text", fix=f'pass --{stream} "TEXT"')
    join_process_group()
    tokenizer = load_tokenizer(config.model)
    encoder = PromptEncoder(task, tokenizer, config.task.max_prompt_tokens)
    prompts = {stream: encoder.encode([{task.long_field: texts[stream]}])[0][0] for stream in streams_of(config)}
    label_ids = label_tokens(task.labels, tokenizer)
    running = open_trained(config, label_tokens=label_ids, labels=task.labels)
    one_row = MicroBatch(np.zeros(1, np.int64), np.ones(1, np.float32))
    batch = collate(
        FreeTexts(prompts, np.zeros(1, np.int32)), one_row, streams=streams_of(config), objective="labels", pad_id=0
    )
    running.engine.eval()
    with torch.no_grad():
        scores_K = label_scores(running.engine(batch.to(device())), label_ids, config)[0]
    return dict(zip(task.labels, scores_K.exp().tolist(), strict=True))
