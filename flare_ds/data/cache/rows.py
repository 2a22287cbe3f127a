"""From parallel rows to tokens: a prompt and an answer in every stream.

Legend: e examples, n rows made of them, t tokens.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from flare_ds.config import Config
from flare_ds.data.cache.encode import form_of, label_tokens, prompt_windows, tokenize_answers, vocabulary_size
from flare_ds.data.cache.format import token_dtype
from flare_ds.data.cache.reading import ExampleReader, Reading
from flare_ds.data.cache.windows import Windows
from flare_ds.data.parallel import ParallelRow, Side
from flare_ds.data.streams import Stream, is_base, token_streams
from flare_ds.exceptions import DataError
from flare_ds.tasks.base import Split, Task
from flare_ds.texts import one_line
from flare_ds.tokenizing.mt_tokens import mt_text
from flare_ds.tokenizing.plain_text import encode_texts

FURTHER_CUT = "test_rows_of_which_other_fields_are_cut"
"""How rows are counted that would not fit if only their long field were cut."""
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
        windows_e: how many rows each example became; 0: it was dropped, as it does not fit into a prompt.
        streams: their tokens.
        counts: examples that were dropped (`dropped_...`), cut further, or cannot be answered, by the reason's name.
    """

    windows_e: np.ndarray
    streams: dict[str, EncodedStream]
    counts: dict[str, int]


class RowEncoder:
    """Encodes chunks of a split's rows; picklable, so that worker processes can hold one.

    Args:
        task: whose rows they are.
        tokenizer: of the base model.
        config: its task and method say in which languages rows are asked and answered, and how prompts look.
        mt_tokenizer: of the MT encoder, where one reads the target text.

    Attributes:
        form: how prompts and answers are tokenized.
        words: the label words, none where answers are free.
        label_tokens: of each.
        streams: what is made of each row.

    Raises:
        ConfigError: prompts are to be chats, and the tokenizer has no chat template that can be used.
        DataError: two label words cannot be told apart, the task lacks a language, or a prompt is too long without any
            text in it.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        config: Config,
        mt_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.task, self.tokenizer, self._mt_tokenizer = task, tokenizer, mt_tokenizer
        self.max_prompt_tokens = config.task.max_prompt_tokens
        self.form = form_of(tokenizer, chat=config.task.chat)
        self.words, self.answers_source = task.label_words(config.answer_language), config.answers_source
        self.label_tokens = label_tokens(self.words, self.form)
        self.vocabulary_size = vocabulary_size(tokenizer)
        self._mt_vocabulary_size = vocabulary_size(mt_tokenizer) if mt_tokenizer is not None else 0
        self.streams = token_streams(config, mt=mt_tokenizer is not None)
        self._label_answers = tokenize_answers(self.form, self.words)
        windows = {
            stream.name: prompt_windows(task, stream.language, self.form, self.max_prompt_tokens)
            for stream in self.streams
            if is_base(stream.name)
        }
        self._check_templates(windows.values())
        self._reader = ExampleReader(windows, task.free_answers, "source" if self.answers_source else "target")

    def encode(self, split: Split, rows: Sequence[ParallelRow]) -> EncodedRows:
        """Encode some rows of one split. One that cannot be made to fit is dropped; of a test row more is cut instead.

        Raises:
            DataError: the tokenizer gave a token id it does not know.
        """
        counts: Counter[str] = Counter()
        rows, readings = self._read(split, rows, counts)
        if self.task.free_answers:
            self._count_unanswerable(split, rows, readings, counts)
        said = [stream for stream in self.streams if stream.source is None or stream.source < len(rows[0].sources)]
        streams = {
            stream.name: (self._prompts if is_base(stream.name) else self._texts)(split, stream, rows, readings)
            for stream in said
        }
        examples_n = np.array([reading.example for reading in readings], np.int64)
        return EncodedRows(np.bincount(examples_n, minlength=len(rows)), streams, dict(counts))

    def token_dtype(self, stream: Stream) -> np.dtype:
        """How tokens of a stream are stored."""
        return token_dtype(self._tokens_known(stream))

    def _tokens_known(self, stream: Stream) -> int:
        return self.vocabulary_size if is_base(stream.name) else self._mt_vocabulary_size

    def _check_templates(self, windows: Iterable[Windows]) -> None:
        blank = dict.fromkeys(self.task.fields, "")
        longest = max(len(prompt) for one in windows for prompt in one.tokenize([blank]))
        if longest >= self.max_prompt_tokens:
            problem = (
                f"the prompt of task {self.task.name} has {longest} tokens without any text, but "
                f"task.max_prompt_tokens={self.max_prompt_tokens}"
            )
            raise DataError(problem, fix=f"set task.max_prompt_tokens well above {longest}")

    def _read(
        self, split: Split, rows: Sequence[ParallelRow], counts: Counter[str]
    ) -> tuple[Sequence[ParallelRow], list[Reading]]:
        """The readings that fit, and the rows as they show them."""
        readings = self._reader.read(split, rows)
        overlong = {reading.example for reading in readings if not self._reader.fits(reading)}
        if overlong and split == "test":
            counts[FURTHER_CUT] = len(overlong)
            rows = [self._reader.squeeze(row) if number in overlong else row for number, row in enumerate(rows)]
            return rows, self._reader.read(split, rows)
        counts.update(self._why_dropped(rows[number]) for number in sorted(overlong))
        return rows, [reading for reading in readings if reading.example not in overlong]

    def _why_dropped(self, row: ParallelRow) -> str:
        crowded = self._reader.is_crowded(row)
        return "dropped_prompt_does_not_fit" if crowded else "dropped_answer_does_not_fit_in_prompt"

    def _count_unanswerable(
        self, split: Split, rows: Sequence[ParallelRow], readings: Sequence[Reading], counts: Counter[str]
    ) -> None:
        """Count the examples whose answer no prompt of theirs shows: it cannot be read off."""
        shown = {r.example for r in readings if self._reader.holds_answer(split, rows[r.example], r)}
        if missing := {reading.example for reading in readings} - shown:
            counts[f"{split}_rows_whose_answer_no_prompt_shows"] = len(missing)

    def _prompts(
        self, split: Split, stream: Stream, rows: Sequence[ParallelRow], readings: Sequence[Reading]
    ) -> EncodedStream:
        """What the base reads, and answers."""
        sides = [stream.text_of(row) for row in rows]
        answers_e = self._answers(rows, sides)
        windows = [reading.windows[stream.name] for reading in readings]
        lengths_e = [0 if side is None else len(self._reader.text(side)) for side in sides]
        cut = [w.end - w.start < lengths_e[r.example] for w, r in zip(windows, readings, strict=True)]
        if stream.name == self._reader.answered and self._reader.slides(split):  # others show what one row leaves out
            seen = {r.example: w.end for w, r in zip(windows, readings, strict=True)}
            cut = [end < lengths_e[example] for example, end in seen.items()]
        answers = [answers_e[reading.example] for reading in readings]
        return self._pack(stream, [window.prompt for window in windows], answers, sum(cut))

    def _answers(self, rows: Sequence[ParallelRow], sides: Sequence[Side | None]) -> Tokens:
        """Answer tokens of each example in one stream; none where it has no such side."""
        if self.words:
            labels = [row.label for row in rows if row.label is not None]
            return [
                [] if side is None else self._label_answers[label] for label, side in zip(labels, sides, strict=True)
            ]
        texts = ["" if side is None else one_line(side.answers[0].text) for side in sides]
        tokens = tokenize_answers(self.form, texts)
        return [[] if side is None else answer for side, answer in zip(sides, tokens, strict=True)]

    def _texts(
        self, split: Split, stream: Stream, rows: Sequence[ParallelRow], readings: Sequence[Reading]
    ) -> EncodedStream:
        """What an MT encoder reads: what the target shows; with label words all of it, cut by the encoder's tokens."""
        tokenizer = self._mt_tokenizer
        assert tokenizer is not None, f"stream {stream.name} has no tokenizer"
        sides = [rows[reading.example].target for reading in readings]
        shown = [side.fields for side in sides]
        if self.task.free_answers:
            shown = [self._reader.shown(side, reading) for side, reading in zip(sides, readings, strict=True)]
        texts = [mt_text(fields) for fields in shown]
        prompts = encode_texts(tokenizer, texts)
        too_long = [row for row, prompt in enumerate(prompts) if len(prompt) > self.max_prompt_tokens]
        for row in too_long:
            (prompts[row],) = encode_texts(tokenizer, [texts[row]], truncation=True, max_length=self.max_prompt_tokens)
        return self._pack(stream, prompts, [[] for _ in prompts], len(too_long))

    def _pack(self, stream: Stream, prompts: Tokens, answers: Tokens, truncated: int) -> EncodedStream:
        tokens_t = np.fromiter(chain.from_iterable(chain.from_iterable(zip(prompts, answers, strict=True))), np.int64)
        known = self._tokens_known(stream)
        if wrong := tokens_t[(tokens_t < 0) | (tokens_t >= known)].tolist():
            problem = f"the tokenizer of stream {stream.name} gave token id {wrong[0]}, but knows only 0 to {known - 1}"
            raise DataError(problem, fix="load it from the directory or hub name that its model came from")
        prompt_lengths_n = np.array([len(prompt) for prompt in prompts], np.int32)
        answer_lengths_n = np.array([len(answer) for answer in answers], np.int32)
        tokens_t = tokens_t.astype(self.token_dtype(stream))
        return EncodedStream(tokens_t, prompt_lengths_n + answer_lengths_n, prompt_lengths_n, truncated)
