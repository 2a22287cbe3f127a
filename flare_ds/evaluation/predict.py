"""Predicting for one free text, alone or with its sources: the only place that tokenizes at run time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import yaml
from transformers import PreTrainedTokenizerBase

from flare_ds.config import Config
from flare_ds.data.batching import MicroBatch
from flare_ds.data.cache.rows import EncodedStream, RowEncoder
from flare_ds.data.collate import Batch, collate
from flare_ds.data.mt_tokens import load_mt_tokenizer
from flare_ds.data.parallel import ParallelRow, Side
from flare_ds.evaluation.batches import streams_of
from flare_ds.evaluation.evaluate import open_trained
from flare_ds.evaluation.generate import eos_ids, generate, with_whole_head
from flare_ds.evaluation.ranked import label_scores
from flare_ds.exceptions import ConfigError
from flare_ds.models.loading import load_tokenizer
from flare_ds.tasks.base import Answer, Task
from flare_ds.tasks.load import task_of
from flare_ds.training.engine import RunningModel
from flare_ds.training.process_group import device, join_process_group
from flare_ds.training.states import for_free_text, free_text_states


class FreeTexts:
    """One example given on the command line, read through as many windows as it needs: what `collate` wants to know.

    Args:
        streams: its windows in each stream.
    """

    def __init__(self, streams: dict[str, EncodedStream]) -> None:
        self._prompts = {stream: _prompts(encoded) for stream, encoded in streams.items()}
        self.labels = np.zeros(len(self), np.int32)

    def __len__(self) -> int:
        return len(self._prompts["target"])

    def prompt(self, stream: str, row: int) -> np.ndarray:
        """Prompt tokens of a stream."""
        return self._prompts[stream][row]

    def answer(self, stream: str, row: int) -> np.ndarray:
        """No answer is known; one placeholder, which is never an input."""
        return np.zeros(1, np.int64)


def _prompts(stream: EncodedStream) -> list[np.ndarray]:
    starts = np.cumsum(stream.lengths_n) - stream.lengths_n
    spans = zip(starts, starts + stream.prompt_lengths_n, strict=True)
    return [stream.tokens_t[start:end].astype(np.int64) for start, end in spans]


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

    Of a text too long for one prompt, the likeliest window answers, as in evaluation.

    Args:
        config: see `predict`.
        target: see `predict`.
        sources: see `predict`.

    Raises:
        ConfigError: as `predict`, or the run's head cannot generate.
        CheckpointError: the run has no adapter that fits.
    """
    opened = _open(for_free_text(with_whole_head(config)), target, sources)
    eos = eos_ids(opened.running.model.base, opened.tokenizer.eos_token_id)
    rows = list(range(len(opened.batch.weights_B)))
    answers = generate(opened.running, opened.batch, config, eos=eos, rows=rows)
    return max(answers, key=lambda answer: answer.log_probability).text(opened.tokenizer)


@dataclass(frozen=True)
class _Opened:
    """A run's model, and the example it is to read."""

    running: RunningModel
    batch: Batch
    task: Task
    tokenizer: PreTrainedTokenizerBase
    label_ids: list[list[int]]


def _open(config: Config, target: str, sources: Sequence[str]) -> _Opened:
    task = task_of(config.task)
    row = _row(config, task, target, sources)
    join_process_group()
    tokenizer = load_tokenizer(config.model)
    mt_tokenizer = load_mt_tokenizer(config.source) if config.reads_mt_encoder else None
    encoder = RowEncoder(task, tokenizer, config.task.max_prompt_tokens, mt_tokenizer)
    texts = FreeTexts(encoder.encode("test", [row]).streams)
    windows = range(len(texts))
    stored = None
    if mt_tokenizer is not None:
        stored = free_text_states(config, [texts.prompt("mt", window).tolist() for window in windows])
    running = open_trained(config, label_tokens=encoder.label_tokens, labels=task.labels)
    every_window = MicroBatch(np.array(windows), np.ones(len(windows), np.float32))
    batch = collate(texts, every_window, streams=streams_of(config), objective="labels", pad_id=0, stored=stored)
    return _Opened(running, batch.to(device()), task, tokenizer, encoder.label_tokens)


def _row(config: Config, task: Task, target: str, sources: Sequence[str]) -> ParallelRow:
    """What was given on the command line, as a row of the task."""
    *streams, _ = streams_of(config)
    if streams and len(sources) != len(streams):
        languages = ", ".join(config.task.source_languages)
        raise ConfigError(
            f"method={config.method} needs a source text for each of: {languages}; got {list(sources)}",
            fix='pass --source "TEXT" once for each, in that order',
        )
    sides = [_side(task, text, "--source") for text in sources[: len(streams)]]
    label = None if task.free_answers else 0  # not known, and not read
    return ParallelRow("given", label, tuple(sides), _side(task, target, "--target"))


def _side(task: Task, given: str, option: str) -> Side:
    """A text as the task's fields: as it is where there is one, otherwise a mapping of them."""
    placeholder = (Answer(""),) if task.free_answers else ()
    if len(task.fields) == 1:
        if not given.strip():
            raise ConfigError(f"{option} is empty", fix=f'pass {option} "TEXT"')
        return Side({task.fields[0]: given}, placeholder)
    try:
        fields = yaml.safe_load(given)
    except yaml.YAMLError:
        fields = None
    if not isinstance(fields, dict) or set(fields) != set(task.fields):
        example = ", ".join(f'"{field}": "TEXT"' for field in task.fields)
        raise ConfigError(
            f"{option}={given!r:.200} does not say {' and '.join(task.fields)} of task {task.name}",
            fix=f"pass {option} '{{{example}}}'",
        )
    return Side({field: str(fields[field]) for field in task.fields}, placeholder)
