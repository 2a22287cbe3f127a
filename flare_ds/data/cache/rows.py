"""From parallel rows to tokens: a prompt and an answer in every stream.

Legend: e examples, n rows made of them, t tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from flare_ds.data.cache.encode import (
    PromptEncoder,
    label_tokens,
    newline_tokens,
    prefix_tokens,
    tokenize,
    tokenize_answers,
    vocabulary_size,
)
from flare_ds.data.cache.format import token_dtype
from flare_ds.data.cache.reading import ExampleReader, Reading
from flare_ds.data.mt_tokens import mt_text, tokenize_texts
from flare_ds.data.parallel import ParallelRow, Side
from flare_ds.data.streams import source_streams
from flare_ds.exceptions import DataError
from flare_ds.tasks.base import Split, Task

Tokens = list[list[int]]


@dataclass(frozen=True)
class EncodedStream:
    """One stream of some rows.

    Attributes:
        tokens_t: of all rows, one after another.
        lengths_n: tokens of each prompt and answer.
        prompt_lengths_n: tokens of each prompt.
        truncated: how many prompts leave out text which no other row of the example shows.
    """

    tokens_t: np.ndarray
    lengths_n: np.ndarray
    prompt_lengths_n: np.ndarray
    truncated: int


@dataclass(frozen=True)
class EncodedRows:
    """Some examples, encoded.

    Attributes:
        windows_e: how many rows each example became; 0: it was dropped, as its answer does not fit into a prompt.
        streams: their tokens.
    """

    windows_e: np.ndarray
    streams: dict[str, EncodedStream]


class RowEncoder:
    """Encodes chunks of a split's rows; picklable, so that worker processes can hold one.

    Args:
        task: whose rows they are.
        tokenizer: of the base model.
        max_prompt_tokens: the longest prompt.
        mt_tokenizer: of the MT encoder, where one reads the target text.

    Raises:
        DataError: two label words cannot be told apart.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_tokens: int,
        mt_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.task, self.tokenizer, self.mt_tokenizer = task, tokenizer, mt_tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self.label_tokens = label_tokens(task.labels, tokenizer)
        self.vocabulary_size = vocabulary_size(tokenizer)
        self._mt_vocabulary_size = vocabulary_size(mt_tokenizer) if mt_tokenizer is not None else 0
        self.prefix_ids = prefix_tokens(tokenizer)
        self.newline_ids = newline_tokens(tokenizer)
        self._label_answers = tokenize_answers(tokenizer, task.labels)
        windows = PromptEncoder(task, tokenizer, max_prompt_tokens).windows
        self._reader = ExampleReader(windows, task.free_answers)

    def encode(self, split: Split, rows: Sequence[ParallelRow]) -> EncodedRows:
        """Encode some rows of one split.

        Raises:
            DataError: a prompt cannot be made to fit, or the tokenizer gave a token id it does not know.
        """
        readings = self._fitting(split, rows, self._reader.read(split, rows))
        sources = source_streams(len(rows[0].sources))
        sides = {stream: [row.sources[number] for row in rows] for number, stream in enumerate(sources)}
        sides["target"] = [row.target for row in rows]
        streams = {stream: self._stream(split, stream, rows, of_rows, readings) for stream, of_rows in sides.items()}
        if self.mt_tokenizer is not None:
            streams["mt"] = self._mt_stream(self.mt_tokenizer, rows, readings)
        examples_n = np.array([reading.example for reading in readings], np.int64)
        return EncodedRows(np.bincount(examples_n, minlength=len(rows)), streams)

    def token_dtype(self, stream: str) -> np.dtype:
        """How tokens of a stream are stored."""
        return token_dtype(self._tokens_known(stream))

    def _tokens_known(self, stream: str) -> int:
        return self._mt_vocabulary_size if stream == "mt" else self.vocabulary_size

    def _fitting(self, split: Split, rows: Sequence[ParallelRow], readings: list[Reading]) -> list[Reading]:
        """Drop examples whose answer is too long to be trained on; refuse a prompt that is too long without a text."""
        for reading in readings if not (self.task.free_answers and split == "train") else ():
            for stream, window in reading.windows.items():
                if len(window.prompt) > self.max_prompt_tokens:
                    problem = (
                        f"row {rows[reading.example].id} of task {self.task.name} has a {stream} prompt of "
                        f"{len(window.prompt)} tokens however much of its {self.task.long_field!r} is cut, "
                        f"but task.max_prompt_tokens={self.max_prompt_tokens}"
                    )
                    raise DataError(problem, fix=f"set task.max_prompt_tokens well above {len(window.prompt)}")
        longest = [max(len(window.prompt) for window in reading.windows.values()) for reading in readings]
        return [reading for reading, most in zip(readings, longest, strict=True) if most <= self.max_prompt_tokens]

    def _stream(
        self,
        split: Split,
        stream: str,
        rows: Sequence[ParallelRow],
        sides: Sequence[Side | None],
        readings: Sequence[Reading],
    ) -> EncodedStream:
        answers_e = self._answers(rows, sides)
        windows = [reading.windows[stream] for reading in readings]
        lengths_e = [0 if side is None else len(self._reader.text(side)) for side in sides]
        cut = [w.end - w.start < lengths_e[r.example] for w, r in zip(windows, readings, strict=True)]
        truncated = 0 if stream == "target" and self._reader.slides(split) else sum(cut)
        answers = [answers_e[reading.example] for reading in readings]
        return self._pack(stream, [window.prompt for window in windows], answers, truncated)

    def _answers(self, rows: Sequence[ParallelRow], sides: Sequence[Side | None]) -> Tokens:
        """Answer tokens of each example in one stream; none where it has no such side."""
        if self.task.labels:
            labels = [row.label for row in rows if row.label is not None]
            return [
                [] if side is None else self._label_answers[label] for label, side in zip(labels, sides, strict=True)
            ]
        texts = ["" if side is None else side.answers[0].text for side in sides]
        tokens = tokenize_answers(self.tokenizer, texts)
        return [[] if side is None else answer for side, answer in zip(sides, tokens, strict=True)]

    def _mt_stream(
        self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[ParallelRow], readings: Sequence[Reading]
    ) -> EncodedStream:
        """What an MT encoder reads: what the target shows; with label words all of it, cut by the encoder's tokens."""
        sides = [rows[reading.example].target for reading in readings]
        shown = [side.fields for side in sides]
        if self.task.free_answers:
            shown = [self._reader.shown(side, reading) for side, reading in zip(sides, readings, strict=True)]
        texts = [mt_text(fields) for fields in shown]
        prompts = tokenize(tokenizer, texts, special_tokens=True)
        too_long = [row for row, prompt in enumerate(prompts) if len(prompt) > self.max_prompt_tokens]
        for row in too_long:
            (prompts[row],) = tokenize_texts(tokenizer, [texts[row]], longest=self.max_prompt_tokens)
        return self._pack("mt", prompts, [[] for _ in prompts], len(too_long))

    def _pack(self, stream: str, prompts: Tokens, answers: Tokens, truncated: int) -> EncodedStream:
        tokens_t = np.fromiter(chain.from_iterable(chain.from_iterable(zip(prompts, answers, strict=True))), np.int64)
        known = self._tokens_known(stream)
        if wrong := tokens_t[(tokens_t < 0) | (tokens_t >= known)].tolist():
            problem = f"the tokenizer of stream {stream} gave token id {wrong[0]}, but knows only 0 to {known - 1}"
            raise DataError(problem, fix="load it from the directory or hub name that its model came from")
        prompt_lengths_n = np.array([len(prompt) for prompt in prompts], np.int32)
        answer_lengths_n = np.array([len(answer) for answer in answers], np.int32)
        tokens_t = tokens_t.astype(self.token_dtype(stream))
        return EncodedStream(tokens_t, prompt_lengths_n + answer_lengths_n, prompt_lengths_n, truncated)
