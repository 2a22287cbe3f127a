"""Batches of several cells laid out as one, in which each distinct source row stands once.

    columns       0 ................... P-1 | P ... L-1
    source rows   . . . s0 s1 s2 s3         | . .            of all cells, each text once
    cell 1        . . . . t0 t1 t2          | a0 .           its own batch, moved to where all prompts end
    cell 2        . t0 t1 t2 t3 t4          | . .
    cell 3        . . . s0 s1 s2 s3         | . .            sources that it reads with its adapter are its own rows
                  . . t0 t1 t2 t3           | . .

Two rows are the same source if they hold the same tokens at the same positions, whatever languages and methods the
cells have.

Legend: X distinct source rows, Y those of a cell among them, L columns, P prompt columns, N answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flare_ds.batches.collate import Batch, sent
from flare_ds.methods import Method


@dataclass(frozen=True)
class Share:
    """One cell's part of a joint batch.

    Attributes:
        batch: its own rows, as it would read them alone.
        rows: where those stand that no other cell reads: the target's, and sources that its adapter reads, too.
        source_rows_Y: which of the distinct source rows each of its others is; None: they are these, in this order.
        shift: how many columns further right its own stand.
    """

    batch: Batch
    rows: slice
    source_rows_Y: Tensor | None
    shift: int

    @property
    def reads_sources(self) -> bool:
        """Whether any of its rows stands among the distinct source rows."""
        return len(self.batch.input_ids) > self.rows.stop - self.rows.start

    @property
    def columns(self) -> slice:
        """Those of the joint batch that its own rows fill."""
        return self.moved(self.batch.columns[1] if self.reads_sources else self.every_column)

    @property
    def every_column(self) -> slice:
        """All of its batch."""
        return slice(0, self.batch.input_ids.shape[1])

    def moved(self, columns: slice) -> slice:
        """Columns of its own batch, in the joint one."""
        return slice(columns.start + self.shift, columns.stop + self.shift)


@dataclass(frozen=True)
class JointBatch:
    """What one forward reads for several cells.

    Attributes:
        shares: of each cell that has rows in it.
        input_ids: [X + own rows of all cells, L].
        attention_mask: of the same shape, 0 on padding.
        position_ids: of the same shape; each row's own, from 0 or, where sources are lined up, from the end of another.
        answer_columns_N: those whose logits predict an answer, of the cell with the longest.
        sources: X.
        source_columns: those that any source row fills.
        host_ids: input_ids on the host.
    """

    shares: Mapping[int, Share]
    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    answer_columns_N: Tensor
    sources: int
    source_columns: slice
    host_ids: Tensor

    def to(self, device: torch.device) -> "JointBatch":
        """The same on another device, as `Batch.to`."""
        shares = {
            cell: replace(
                share,
                batch=share.batch.to(device),
                source_rows_Y=None if share.source_rows_Y is None else sent(share.source_rows_Y, device),
            )
            for cell, share in self.shares.items()
        }
        names = ("input_ids", "attention_mask", "position_ids", "answer_columns_N")
        moved: dict[str, Any] = {name: sent(getattr(self, name), device) for name in names}
        return replace(self, shares=shares, **moved)


def join(batches: Mapping[int, Batch], methods: Mapping[int, Method]) -> JointBatch:
    """Lay out the batches of several cells, which are on the host, as one; both by the cells' numbers."""
    prompts = max(batch.prompt_columns for batch in batches.values())
    behind = max(batch.input_ids.shape[1] - batch.prompt_columns for batch in batches.values())
    sources, own, shares = dict[_Line, int](), list[_Line](), dict[int, Share]()
    lines = {cell: _lines(batch, methods[cell], prompts, behind) for cell, batch in batches.items()}
    first = {c: 0 if methods[c].adapts_source else len(lines[c]) - len(b.target_lengths_B) for c, b in batches.items()}
    places = {c: [sources.setdefault(line, len(sources)) for line in lines[c][: first[c]]] for c in batches}
    for cell, batch in batches.items():
        start = len(sources) + len(own)
        own += lines[cell][first[cell] :]
        among = None if places[cell] == list(range(len(sources))) else torch.tensor(places[cell], dtype=torch.long)
        rows = slice(start, len(sources) + len(own))
        shares[cell] = Share(batch, rows, among, prompts - batch.prompt_columns)
    reading = [share for share in shares.values() if share.reads_sources]
    ids, mask, starts = (torch.tensor(grid) for grid in zip(*sources, *own, strict=True))
    return JointBatch(
        shares=shares,
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clip(min=0) + starts[:, None],
        answer_columns_N=torch.arange(max(len(batch.answer_columns_N) for batch in batches.values())) + prompts - 1,
        sources=len(sources),
        source_columns=_reach([share.moved(share.batch.columns[0]) for share in reading]),
        host_ids=ids,
    )


_Line = tuple[tuple[int, ...], tuple[int, ...], int]
"""The ids of a row, its mask, and the position of its first token."""


def _lines(batch: Batch, method: Method, prompts: int, behind: int) -> list[_Line]:
    """The rows of a batch, their prompts ending in column `prompts`, with zeros on padding."""
    around = (prompts - batch.prompt_columns, behind - (batch.input_ids.shape[1] - batch.prompt_columns))
    mask = F.pad(batch.attention_mask, around)
    ids = F.pad(batch.host_ids, around) * mask
    return list(zip(map(tuple, ids.tolist()), map(tuple, mask.tolist()), _starts(batch, method), strict=True))


def _starts(batch: Batch, method: Method) -> list[int]:
    """Where the positions of each row begin; those of the target's rows are asked of its streams."""
    starts_X = torch.zeros(len(batch.input_ids), dtype=torch.long)
    if method.lines_up_sources and batch.stored_BMKD is None:
        lengths_SB = batch.source_lengths_SB.cpu()
        starts_X[: lengths_SB.numel()] = (lengths_SB.cumsum(0) - lengths_SB).flatten()
    return starts_X.tolist()


def _reach(columns: list[slice]) -> slice:
    """All columns that any of these has."""
    return slice(min((own.start for own in columns), default=0), max((own.stop for own in columns), default=0))
