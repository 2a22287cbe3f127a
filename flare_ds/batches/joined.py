"""Batches of several cells laid out as one, in which each distinct source row stands once.

    columns       0 ................... P-1 | P ... L-1
    source rows   . . . s0 s1 s2 s3         | . .            of all cells, each text once
    cell 1        . . . . t0 t1 t2          | a0 .           its own batch, moved to where all prompts end
    cell 2        . t0 t1 t2 t3 t4          | . .

Two rows are the same source if they hold the same tokens, whatever languages and methods the cells have.

Legend: X distinct source rows, Y a cell's source rows, B its target rows, L columns, P prompt columns, N answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from flare_ds.batches.collate import Batch


@dataclass(frozen=True)
class Share:
    """One cell's part of a joint batch.

    Attributes:
        batch: its own rows, as it would read them alone.
        rows: where its target rows stand.
        source_rows_Y: which of the distinct source rows each of its own is; None: they are these, in this order.
        shift: how many columns further right its own stand.
    """

    batch: Batch
    rows: slice
    source_rows_Y: Tensor | None
    shift: int

    @property
    def reads_sources(self) -> bool:
        """Whether any source row stands beside its own."""
        return len(self.batch.input_ids) > len(self.batch.target_lengths_B)

    def moved(self, columns: slice) -> slice:
        """Columns of its own batch, in the joint one."""
        return slice(columns.start + self.shift, columns.stop + self.shift)


@dataclass(frozen=True)
class JointBatch:
    """What one forward reads for several cells.

    Attributes:
        shares: of each cell that has rows in it.
        input_ids: [X + B of all cells, L].
        attention_mask: of the same shape, 0 on padding.
        position_ids: of the same shape; each row's own, from 0.
        answer_columns_N: those whose logits predict an answer, of the cell with the longest.
        sources: X.
        source_columns: those that any source row fills.
        known_ids: input_ids on the host.
    """

    shares: Mapping[int, Share]
    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    answer_columns_N: Tensor
    sources: int
    source_columns: slice
    known_ids: Tensor

    @property
    def host_ids(self) -> Tensor:
        """input_ids on the host."""
        return self.known_ids

    def to(self, device: torch.device) -> "JointBatch":
        """The same on another device."""
        shares = {
            cell: replace(
                share,
                batch=share.batch.to(device),
                source_rows_Y=None if share.source_rows_Y is None else share.source_rows_Y.to(device),
            )
            for cell, share in self.shares.items()
        }
        names = ("input_ids", "attention_mask", "position_ids", "answer_columns_N")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, shares=shares, **moved)


def join(batches: Mapping[int, Batch]) -> JointBatch:
    """Lay out the batches of several cells, by their numbers, as one; they are on the host."""
    prompts = max(batch.prompt_columns for batch in batches.values())
    behind = max(batch.input_ids.shape[1] - batch.prompt_columns for batch in batches.values())
    sources, targets, shares = dict[_Line, int](), list[_Line](), dict[int, Share]()
    lines = {cell: _lines(batch, prompts, behind) for cell, batch in batches.items()}
    places = {
        cell: [sources.setdefault(line, len(sources)) for line in lines[cell][: -len(batch.target_lengths_B)]]
        for cell, batch in batches.items()
    }
    for cell, batch in batches.items():
        start = len(sources) + len(targets)
        targets += lines[cell][-len(batch.target_lengths_B) :]
        own = None if places[cell] == list(range(len(sources))) else torch.tensor(places[cell], dtype=torch.long)
        rows = slice(start, len(sources) + len(targets))
        shares[cell] = Share(batch, rows, own, prompts - batch.prompt_columns)
    reading = [share for share in shares.values() if share.reads_sources]
    ids, mask = (torch.tensor(grid) for grid in zip(*sources, *targets, strict=True))
    return JointBatch(
        shares=shares,
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clip(min=0),
        answer_columns_N=torch.arange(max(len(batch.answer_columns_N) for batch in batches.values())) + prompts - 1,
        sources=len(sources),
        source_columns=_reach([share.moved(share.batch.columns[0]) for share in reading]),
        known_ids=ids,
    )


_Line = tuple[tuple[int, ...], tuple[int, ...]]
"""The ids of a row and its mask."""


def _lines(batch: Batch, prompts: int, behind: int) -> list[_Line]:
    """The rows of a batch, their prompts ending in column `prompts`, with zeros on padding."""
    around = (prompts - batch.prompt_columns, behind - (batch.input_ids.shape[1] - batch.prompt_columns))
    mask = F.pad(batch.attention_mask, around)
    ids = F.pad(batch.host_ids, around) * mask
    return list(zip(map(tuple, ids.tolist()), map(tuple, mask.tolist()), strict=True))


def _reach(columns: list[slice]) -> slice:
    """All columns that any of these has."""
    return slice(min((own.start for own in columns), default=0), max((own.stop for own in columns), default=0))
