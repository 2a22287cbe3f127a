"""Batches: cached rows laid out for the model.

    columns      0 ............ P-1 | P ...... L-1
    source row   . . s0 s1 s2 s3    | . . .            prompts left-padded to end in column P-1, all streams alike,
    target row   . . . t0 t1 t2     | a0 a1 .          answers right-padded behind; a row counts positions from its
                                                       own first token

The logits that predict answer token n stand in column P-1+n, the same for every row. With objective=labels answers end
with the last token that tells the label word apart from the others: mostly the first, so L = P. Training and test
prompts are laid out alike. A source row has its own answer behind it with span=full, and where it is to predict it as
well (x_mixup).

Stored source states stand in columns of their own, left-padded likewise.

Legend: B rows, S sources, P prompt columns, L columns, N answer positions, M columns of stored states, K states a
position, D their width; of logits K is the tokens in which label words part.
"""

from collections.abc import Sequence, Sized
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flare_ds.batches.batching import MicroBatch
from flare_ds.data.label_trie import LabelTrie
from flare_ds.data.row_answers import NO_TARGET, NOTHING, LabelAnswers, Rows, TokenAnswers


class StoredStates(Protocol):
    """Source states of a split's rows that were computed before."""

    def states(self, row: int) -> Tensor:
        """States of one row, without padding: [n, K, D]."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank.

    Attributes:
        input_ids: all rows of one source after those of another, then the target's: [(S+1)·B, L]; [B, L] where the
            source states are stored, or there is no source.
        attention_mask: of the same shape, 0 on padding.
        position_ids: of the same shape.
        source_lengths_SB: prompt tokens of the source rows (0: the row has no source).
        source_answers_SB: answer tokens behind them (span=full, x_mixup), or None.
        target_lengths_B: prompt tokens of the target rows.
        answer_columns_N: columns whose logits predict an answer.
        answers_BN: what they should predict: place among the label words' tokens (objective labels) or token id;
            NO_TARGET: nothing.
        weights_B: 1, or 0 for a filler row.
        source_targets_SBN: what the source rows should predict (x_mixup), or None.
        prompt_columns: P.
        first_columns: the first column that any source row fills, and the first that a target row does.
        stored_BMKD: source states that were computed before, or None.
        branches_BNK: which of the label words' tokens an answer is chosen among, or None: all that there are.
        known_ids: input_ids on the host, if they are known there.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    source_lengths_SB: Tensor
    source_answers_SB: Tensor | None
    target_lengths_B: Tensor
    answer_columns_N: Tensor
    answers_BN: Tensor
    weights_B: Tensor
    prompt_columns: int
    first_columns: tuple[int, int] = (0, 0)
    source_targets_SBN: Tensor | None = None
    stored_BMKD: Tensor | None = None
    branches_BNK: Tensor | None = None
    known_ids: Tensor | None = None

    @property
    def columns(self) -> tuple[slice, slice]:
        """The columns that the sources' rows fill, prompts and answers, and those of the target's; alone it has all."""
        together = len(self.input_ids) > len(self.target_lengths_B)
        source, target = self.first_columns if together else (0, 0)
        end = self.prompt_columns if self.source_answers_SB is None else self.input_ids.shape[1]
        return slice(source, end), slice(target, self.input_ids.shape[1])

    @property
    def host_ids(self) -> Tensor:
        """input_ids on the host; where they are not known there, that waits for the device."""
        return self.input_ids.cpu() if self.known_ids is None else self.known_ids

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device; to a GPU the copies go on beside what this process does next."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "known_ids"}
        moved: dict[str, Any] = {n: sent(value, device) for n, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved, known_ids=self.host_ids)

    def followed_by(self, tokens: tuple[int, ...]) -> "Batch":
        """The same prompts and tokens that every row reads behind them; sources do where their answers would stand."""
        rows, lines = len(self.target_lengths_B), len(self.input_ids)
        reads_X = self.attention_mask.any(1)
        if self.source_answers_SB is None:
            reads_X[: lines - rows] = False
        tokens_XN = torch.tensor(tokens).expand(lines, -1)
        ids = torch.cat([self.host_ids, tokens_XN], 1)
        mask = torch.cat([self.attention_mask, reads_X[:, None].expand(-1, len(tokens)).to(self.attention_mask)], 1)
        read = reads_X[: lines - rows].view(-1, rows) * len(tokens)
        first = self.answer_columns_N[0]
        return replace(
            self,
            input_ids=torch.cat([self.input_ids, tokens_XN.to(self.input_ids.device)], 1),
            known_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clip(min=0),
            source_answers_SB=None if self.source_answers_SB is None else read,
            answer_columns_N=torch.arange(len(tokens) + 1, device=first.device) + first,
        )


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The same tensor on another device; to a GPU the copy goes on beside what this process does next."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def collate(
    split: Rows,
    micro_batch: MicroBatch,
    *,
    streams: tuple[str, ...],
    objective: str,
    pad_id: int,
    source_answers: bool = False,
    source_targets: bool = False,
    stored: StoredStates | None = None,
    trie: LabelTrie | None = None,
) -> Batch:
    """Lay out the rows of one micro-batch.

    Args:
        split: the rows.
        micro_batch: which rows, and their weights.
        streams: the sources', if they run beside the target, and last "target".
        objective: labels or vocabulary.
        pad_id: fills the padding; masked, so its choice changes nothing.
        source_answers: whether the answers of the source rows follow their prompts (span=full).
        source_targets: whether they do so and are to be predicted, too (training of x_mixup).
        stored: the source states of the split's rows, where they were computed before.
        trie: of the label words (objective labels); None: a batch ends with the prompts, whatever its words.
    """
    rows = [int(row) for row in micro_batch.rows]
    prompts_SB = [[split.prompt(stream, row) for row in rows] for stream in streams]
    longest = _longest(prompts_SB[:-1]), _longest(prompts_SB[-1:])
    prompt_columns = max(longest)
    answers = TokenAnswers(split) if objective == "vocabulary" else LabelAnswers(split, trie)
    predicting = streams if source_targets else streams[-1:]
    targets_SBN = _right_padded([[answers.targets(stream, row) for row in rows] for stream in predicting])
    source_answers = source_answers or source_targets
    reading = streams if source_answers else streams[-1:]
    inputs_SB = [[answers.inputs(stream, row) if stream in reading else NOTHING for row in rows] for stream in streams]
    ids, mask = _grid(list(chain(*prompts_SB)), list(chain(*inputs_SB)), prompt_columns, pad_id)
    states = None if stored is None else [stored.states(row) for row in rows]
    sources_SB = prompts_SB[:-1] if states is None else [states]
    return Batch(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        position_ids=torch.from_numpy((mask.cumsum(1) - 1).clip(min=0)),
        source_lengths_SB=_lengths(sources_SB).view(-1, len(rows)),
        source_answers_SB=_lengths(inputs_SB[:-1]) if source_answers and len(streams) > 1 else None,
        target_lengths_B=_lengths(prompts_SB[-1:])[0],
        answer_columns_N=torch.arange(prompt_columns - 1, prompt_columns - 1 + targets_SBN.shape[2]),
        answers_BN=targets_SBN[-1],
        weights_B=torch.from_numpy(micro_batch.weights),
        prompt_columns=prompt_columns,
        first_columns=(prompt_columns - longest[0], prompt_columns - longest[1]),
        source_targets_SBN=targets_SBN[:-1] if source_targets else None,
        stored_BMKD=None if states is None else _left_padded(states),
        branches_BNK=answers.branches(rows, targets_SBN.shape[2]),
    )


def _lengths(items_SB: Sequence[Sequence[Sized]]) -> Tensor:
    """How long each of some prompts, answers or states is: int64 [S, B]."""
    return torch.tensor([[len(item) for item in items] for items in items_SB], dtype=torch.long)


def _grid(
    prompts: list[np.ndarray], inputs: list[np.ndarray], prompt_columns: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """The token ids of all rows and their mask, each int64 [(S+1)·B, L], as drawn at the top of this module."""
    ids = np.full((len(prompts), prompt_columns + max(map(len, inputs))), pad_id, np.int64)
    mask = np.zeros_like(ids)
    for line, (prompt, answer) in enumerate(zip(prompts, inputs, strict=True)):
        span = slice(prompt_columns - len(prompt), prompt_columns + len(answer))
        ids[line, span] = np.concatenate([prompt, answer])
        mask[line, span] = 1
    return ids, mask


def _longest(prompts_SB: list[list[np.ndarray]]) -> int:
    """Columns that these prompts need; one, if there is no token in them."""
    return max([1, *(len(prompt) for prompts in prompts_SB for prompt in prompts)])


def _left_padded(states: list[Tensor]) -> Tensor:
    """[n, K, D] of each row, as one [B, M, K, D]; padding is zero and has no partner, and there is at least one."""
    columns = max(1, *(len(state) for state in states))
    return torch.stack([F.pad(state, (0, 0, 0, 0, columns - len(state), 0)) for state in states])


def _right_padded(answers_SB: list[list[np.ndarray]]) -> Tensor:
    longest = max(len(answer) for answers in answers_SB for answer in answers)
    padded_SBN = torch.full((len(answers_SB), len(answers_SB[0]), longest), NO_TARGET)
    for stream, answers in enumerate(answers_SB):
        for row, answer in enumerate(answers):
            padded_SBN[stream, row, : len(answer)] = torch.from_numpy(np.asarray(answer, np.int64))
    return padded_SBN
