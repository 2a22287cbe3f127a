"""Predicting for one free text, alone or with its sources: the only place that tokenizes at run time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from flare_ds.config import Config
from flare_ds.data.batching import MicroBatch
from flare_ds.data.cache.encode import PromptEncoder, label_tokens
from flare_ds.data.collate import Batch, collate
from flare_ds.evaluation.evaluate import open_trained
from flare_ds.evaluation.generate import eos_ids, generate, with_whole_head
from flare_ds.evaluation.ranked import label_scores, streams_of
from flare_ds.exceptions import ConfigError
from flare_ds.models.loading import load_tokenizer
from flare_ds.tasks import TASKS
from flare_ds.tasks.base import Task
from flare_ds.training.engine import RunningModel
from flare_ds.training.process_group import device, join_process_group
from flare_ds.training.states import for_free_text, free_text_states


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


def predict(config: Config, *, target: str, sources: Sequence[str]) -> dict[str, float]:
    """Probability of each label word for a text in the target language.

    Args:
        config: of a trained run, or of zero_shot.
        target: the text.
        sources: the same text in each source language, in the order of the config; read by flare only, and not where
            its source states come from an MT encoder.

    Raises:
        ConfigError: a text is missing or empty.
        CheckpointError: the run has no adapter that fits.
    """
    opened = _open(for_free_text(config), target, sources)
    opened.running.root.eval()
    with torch.no_grad():
        scores_K = label_scores(opened.running.root(opened.batch), opened.label_ids, config)[0]
    return dict(zip(opened.task.labels, scores_K.exp().tolist(), strict=True))


def predict_answer(config: Config, *, target: str, sources: Sequence[str]) -> str:
    """The answer decoded for a text in the target language, as `config.generate` says.

    Args:
        config: see `predict`.
        target: see `predict`.
        sources: see `predict`.

    Raises:
        ConfigError: as `predict`, or the run's head cannot generate.
        CheckpointError: the run has no adapter that fits.
    """
    opened = _open(for_free_text(with_whole_head(config)), target, sources)
    eos = eos_ids(opened.running.model.base)
    (answer,) = generate(opened.running, opened.batch, config, eos=eos, rows=[0])
    return str(opened.tokenizer.decode(answer, skip_special_tokens=True)).strip()


@dataclass(frozen=True)
class _Opened:
    """A run's model, and the one row it is to read."""

    running: RunningModel
    batch: Batch
    task: Task
    tokenizer: PreTrainedTokenizerBase
    label_ids: list[list[int]]


def _open(config: Config, target: str, sources: Sequence[str]) -> _Opened:
    task = TASKS.get(config.task.name)
    streams = streams_of(config)
    texts = _texts(config, target, sources)
    join_process_group()
    tokenizer = load_tokenizer(config.model)
    encoder = PromptEncoder(task, tokenizer, config.task.max_prompt_tokens)
    prompts = {stream: encoder.encode([{task.long_field: texts[stream]}])[0][0] for stream in streams}
    label_ids = label_tokens(task.labels, tokenizer)
    stored = free_text_states(config, {task.long_field: target})
    running = open_trained(config, label_tokens=label_ids, labels=task.labels)
    one_row = MicroBatch(np.zeros(1, np.int64), np.ones(1, np.float32))
    row = FreeTexts(prompts, np.zeros(1, np.int32))
    batch = collate(row, one_row, streams=streams, objective="labels", pad_id=0, stored=stored)
    return _Opened(running, batch.to(device()), task, tokenizer, label_ids)


def _texts(config: Config, target: str, sources: Sequence[str]) -> dict[str, str]:
    """The text of each stream."""
    *streams, _ = streams_of(config)
    if streams and (len(sources) != len(streams) or not all(sources)):
        languages = ", ".join(config.task.source_languages)
        raise ConfigError(
            f"method={config.method} needs a source text for each of: {languages}; got {list(sources)}",
            fix='pass --source "TEXT" once for each, in that order',
        )
    if not target:
        raise ConfigError("there is no target text", fix='pass --target "TEXT"')
    return dict(zip(streams, sources, strict=False)) | {"target": target}
