"""From a row's fields to token ids: the one way a prompt and a label word are tokenized, in a cache and outside it.

A prompt is tokenized with the special tokens of the tokenizer, but never ends in eos; a label word continues it.
A prompt that is too long loses the end of the task's long field, so the template always survives.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from multiprocessing import get_context

from transformers import PreTrainedTokenizerBase

from flare_ds.exceptions import DataError
from flare_ds.tasks.base import Task

Fields = Mapping[str, str]
Encoded = tuple[list[list[int]], int]
Encode = Callable[[Iterable[Sequence[Fields]]], Iterator[Encoded]]


@dataclass(frozen=True)
class PromptEncoder:
    """Tokenizes the prompts of one task; picklable, so that worker processes can hold one."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    max_prompt_tokens: int

    def encode(self, fields: Sequence[Fields]) -> Encoded:
        """Tokenize prompts, cutting the long field of those above `max_prompt_tokens`.

        Returns:
            The token ids of each prompt, and how many prompts were cut. A template that is too long by itself
            stays too long: see `check_lengths`.
        """
        prompts = self._tokenize(fields)
        too_long = [row for row, prompt in enumerate(prompts) if len(prompt) > self.max_prompt_tokens]
        cut = self._cut_to_fit([fields[row] for row in too_long])
        for row, prompt in zip(too_long, cut, strict=True):
            prompts[row] = prompt
        return prompts, len(too_long)

    def check_lengths(self, ids: Iterable[str], prompts: Iterable[Sequence[int]]) -> None:
        """Refuse prompts that no cutting made short enough.

        Raises:
            DataError: naming the first such row.
        """
        for row_id, prompt in zip(ids, prompts, strict=True):
            if len(prompt) > self.max_prompt_tokens:
                problem = (
                    f"row {row_id} of task {self.task.name} has a prompt of {len(prompt)} tokens with an empty "
                    f"{self.task.long_field!r}, but task.max_prompt_tokens={self.max_prompt_tokens}"
                )
                raise DataError(problem, fix=f"set task.max_prompt_tokens well above {len(prompt)}")

    def _cut_to_fit(self, fields: Sequence[Fields]) -> list[list[int]]:
        """Binary search of the longest prefix that fits, for all rows at once: some ten tokenizer calls in all."""
        fitting = [0] * len(fields)
        unfitting = [len(row[self.task.long_field]) for row in fields]
        best = self._tokenize_cut(fields, fitting)
        while active := [row for row in range(len(fields)) if unfitting[row] - fitting[row] > 1]:
            middle = [(fitting[row] + unfitting[row]) // 2 for row in active]
            tried = self._tokenize_cut([fields[row] for row in active], middle)
            for row, length, prompt in zip(active, middle, tried, strict=True):
                if len(prompt) <= self.max_prompt_tokens:
                    fitting[row], best[row] = length, prompt
                else:
                    unfitting[row] = length
        return best

    def _tokenize_cut(self, fields: Sequence[Fields], lengths: Sequence[int]) -> list[list[int]]:
        name = self.task.long_field
        return self._tokenize([{**row, name: row[name][:end]} for row, end in zip(fields, lengths, strict=True)])

    def _tokenize(self, fields: Sequence[Fields]) -> list[list[int]]:
        if not fields:
            return []
        prompts = [self.task.prompt(row) for row in fields]
        return [self._without_final_eos(prompt) for prompt in tokenize(self.tokenizer, prompts, special_tokens=True)]

    def _without_final_eos(self, prompt: list[int]) -> list[int]:
        end = len(prompt)
        while end and prompt[end - 1] == self.tokenizer.eos_token_id:
            end -= 1
        return prompt[:end]


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
    """Token ids of each text; nothing is padded or truncated."""
    encoding = tokenizer(list(texts), add_special_tokens=special_tokens, padding=False, truncation=False, verbose=False)
    return encoding["input_ids"]


def label_tokens(labels: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of a space and each label word, checked to be told apart by their tokens.

    Raises:
        DataError: two words have the same tokens, or the tokens of one begin those of another.
    """
    tokens = tokenize(tokenizer, [f" {word}" for word in labels], special_tokens=False)
    for (word, ids), (other, other_ids) in permutations(zip(labels, tokens, strict=True), 2):
        if other_ids[: len(ids)] == ids:
            how = "equal" if ids == other_ids else "begin"
            problem = f"the tokens of label word {word!r} ({ids}) {how} those of {other!r} ({other_ids})"
            fix = "choose label words that this tokenizer tells apart, or another base model"
            raise DataError(problem, fix=fix)
    return tokens


@contextmanager
def encode_in(workers: int, encoder: PromptEncoder) -> Iterator[Encode]:
    """Yield a function that encodes chunks of rows in order, in this process or in `workers` fresh ones."""
    if workers == 1:
        yield lambda chunks: map(encoder.encode, chunks)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (encoder,)) as pool:
        yield lambda chunks: pool.map(_encode_in_worker, chunks)


_worker_encoder: PromptEncoder  # of a worker process; sent to it once, as a tokenizer can be tens of megabytes


def _start_worker(encoder: PromptEncoder) -> None:
    global _worker_encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker_encoder = encoder


def _encode_in_worker(fields: Sequence[Fields]) -> Encoded:
    return _worker_encoder.encode(fields)
