"""Batches: cached rows laid out for the model.

    columns      0 ............ P-1 | P ...... L-1
    source row   . . s0 s1 s2 s3    | . . .            prompts left-padded to end in column P-1, both streams alike,
    target row   . . . t0 t1 t2     | a0 a1 .          answers right-padded behind; a row counts positions from its
                                                       own first token

The logits that predict answer token n stand in column P-1+n, the same for every row. With objective=labels only the
first answer token is predicted, so L = P. Training and test prompts are laid out alike.

Legend: B rows, S streams (1, or source then target), P prompt columns, L columns, N answer positions.
"""

from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flare_ds.data.batching import MicroBatch

NO_TARGET = -100


class Rows(Protocol):
    """What a batch is made from: a split of a cache, or free text."""

    @property
    def labels(self) -> np.ndarray:
        """Label index of each row."""

    def prompt(self, stream: str, row: int) -> np.ndarray:
        """Prompt tokens of one row."""

    def answer(self, stream: str, row: int) -> np.ndarray:
        """Answer tokens of one row."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank.

    Attributes:
        input_ids: [S·B, L], all source rows before all target rows.
        attention_mask: [S·B, L], 0 on padding.
        position_ids: [S·B, L].
        source_lengths_B: prompt tokens of the source rows (0 without a source stream).
        target_lengths_B: prompt tokens of the target rows.
        answer_columns_N: columns whose logits predict the answer.
        answers_BN: what they should predict: label index (objective labels) or token id; NO_TARGET: nothing.
        weights_B: 1, or 0 for a filler row.
        prompt_columns: P.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    source_lengths_B: Tensor
    target_lengths_B: Tensor
    answer_columns_N: Tensor
    answers_BN: Tensor
    weights_B: Tensor
    prompt_columns: int

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        tensors = {
            field.name: value for field in fields(self) if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})  # type: ignore[arg-type]

    @property
    def num_tokens(self) -> int:
        """Tokens of both streams, padding not counted."""
        return int(self.attention_mask.sum())


def collate(split: Rows, micro_batch: MicroBatch, *, streams: tuple[str, ...], objective: str, pad_id: int) -> Batch:
    """Lay out the rows of one micro-batch.

    Args:
        split: the rows.
        micro_batch: which rows, and their weights.
        streams: ("source", "target") or ("target",).
        objective: labels or vocabulary.
        pad_id: fills the padding; masked, so its choice changes nothing.
    """
    rows = [int(row) for row in micro_batch.rows]
    prompts = {stream: [split.prompt(stream, row) for row in rows] for stream in streams}
    prompt_columns = max(len(prompt) for stream in streams for prompt in prompts[stream])
    if objective == "labels":
        answers = [split.labels[row : row + 1] for row in rows]
        inputs = [np.empty(0, np.int64) for _ in rows]
    else:
        answers = [split.answer("target", row) for row in rows]
        inputs = [answer[:-1] for answer in answers]
    columns = prompt_columns + max(len(tokens) for tokens in inputs)
    ids = np.full((len(streams) * len(rows), columns), pad_id, np.int64)
    mask = np.zeros_like(ids)
    lines = [(prompt, np.empty(0, np.int64)) for stream in streams[:-1] for prompt in prompts[stream]]
    lines += list(zip(prompts["target"], inputs, strict=True))
    for line, (prompt, answer) in enumerate(lines):
        span = slice(prompt_columns - len(prompt), prompt_columns + len(answer))
        ids[line, span] = np.concatenate([prompt, answer])
        mask[line, span] = 1
    return Batch(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        position_ids=torch.from_numpy((mask.cumsum(1) - 1).clip(min=0)),
        source_lengths_B=torch.tensor([len(p) for p in prompts["source"]] if "source" in prompts else [0] * len(rows)),
        target_lengths_B=torch.tensor([len(prompt) for prompt in prompts["target"]]),
        answer_columns_N=torch.arange(prompt_columns - 1, prompt_columns - 1 + max(map(len, answers))),
        answers_BN=torch.from_numpy(_right_padded(answers)),
        weights_B=torch.from_numpy(micro_batch.weights),
        prompt_columns=prompt_columns,
    )


def _right_padded(answers: list[np.ndarray]) -> np.ndarray:
    padded_BN = np.full((len(answers), max(len(answer) for answer in answers)), NO_TARGET, np.int64)
    for row, answer in enumerate(answers):
        padded_BN[row, : len(answer)] = answer
    return padded_BN
