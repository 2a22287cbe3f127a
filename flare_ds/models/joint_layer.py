"""One decoder layer of a joint forward: the sources once, then each cell's rows by its own method's way of reading.

Legend: X distinct source rows, M their columns, B a cell's own rows, L columns, T positions of all cells, D width.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flare_ds.batches.joined import JointBatch
from flare_ds.models.draws import OwnDraws
from flare_ds.models.layer_calls import SHARED, LayerCall, hidden_of, with_hidden
from flare_ds.models.partitioned import Passes
from flare_ds.models.source_pass import Beside, Left, SourcePass, Wanted
from flare_ds.models.streams import PlainLayer, SideBySide

Reader = PlainLayer | SideBySide


@dataclass
class Forward:
    """A joint forward under way.

    Attributes:
        batch: what it reads.
        beside: its distinct source rows.
        draws: of each cell that draws random numbers in it.
        shared: keys and values that each cell's layers leave to later ones, in models that share them.
        shapes: of each cell's state behind the layer that ran last, B and L.
    """

    batch: JointBatch
    beside: Beside
    draws: Mapping[int, OwnDraws]
    shared: dict[int, dict] = field(default_factory=dict)
    shapes: dict[int, torch.Size] = field(default_factory=dict)


class UnderWay:
    """What the layers of a joint model are told.

    Attributes:
        forward: the joint forward under way; None: one cell's batch is read alone.
        asked: whose.
    """

    forward: Forward | None = None
    asked: int = 0


class JointLayer:
    """Stands in for one decoder layer's forward.

    Args:
        readers: what each cell's streams would have stand in for it.
        under_way: what is told to all layers of the model.
    """

    def __init__(
        self, layer: nn.Module, readers: Sequence[Reader], under_way: UnderWay, *, is_first: bool, is_last: bool
    ) -> None:
        self.readers, self.under_way, self.is_first, self.is_last = readers, under_way, is_first, is_last
        self.call, self.passes = LayerCall(layer), Passes(layer)
        self.sources = SourcePass(layer, self.call)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Take [X + B of all cells, L, D] in the first layer, then [1, T, D]; return that, at last without sources."""
        forward = self.under_way.forward
        if forward is None:
            return self.readers[self.under_way.asked](hidden_states, *args, **kwargs)
        given, states = self.call.named(args, kwargs), self._states(hidden_states, forward)
        left = self._left(given, forward)
        outputs = {cell: self._read(cell, state_BLD, given, left, forward) for cell, state_BLD in states.items()}
        states = {cell: hidden_of(output) for cell, output in outputs.items()}
        forward.shapes = {cell: state_BLD.shape[:2] for cell, state_BLD in states.items()}
        return with_hidden(next(iter(outputs.values())), self._together(states, forward))

    def _states(self, hidden_states: Tensor, forward: Forward) -> dict[int, Tensor]:
        """Each cell's [B, L, D], its own rows and columns."""
        shares = forward.batch.shares
        if self.is_first:
            self.call.check_state(hidden_states)
            sources_XMD = hidden_states[: forward.batch.sources]
            forward.beside.state_XMD = sources_XMD[:, forward.batch.source_columns].contiguous()
            return {cell: hidden_states[share.rows, share.columns].contiguous() for cell, share in shares.items()}
        parts = hidden_states[0].split([shape.numel() for shape in forward.shapes.values()])
        of_cells = zip(forward.shapes.items(), parts, strict=True)
        return {cell: part.view(*shape, -1) for (cell, shape), part in of_cells}

    def _left(self, given: dict[str, Any], forward: Forward) -> Left | None:
        """What the sources leave in this layer; None: there are none."""
        batch = forward.batch
        if not batch.sources:
            return None
        readers = [self.readers[cell] for cell, share in batch.shares.items() if share.reads_sources]
        wanted = reduce(or_, (reader.wanted for reader in readers), Wanted(output=not self.is_last))
        of_sources = self.call.part(given, slice(0, batch.sources), len(batch.input_ids), columns=batch.source_columns)
        return self.sources(forward.beside, of_sources, wanted)

    def _read(self, cell: int, state_BLD: Tensor, given: dict[str, Any], left: Left | None, forward: Forward) -> Any:
        """Take a cell's rows through the layer, as its own method does."""
        batch, share, draws = forward.batch, forward.batch.shares[cell], forward.draws.get(cell)
        own = self.call.part(given, share.rows, len(batch.input_ids), columns=share.columns)
        if SHARED in given:
            own[SHARED] = forward.shared.setdefault(cell, {})
        its_own = None  # of what is left: nothing, where a cell reads no source rows, or stored ones
        if left is not None and share.reads_sources:
            first = batch.source_columns.start
            columns = share.moved(share.batch.columns[0])
            its_own = left.for_rows(share.source_rows_Y, slice(columns.start - first, columns.stop - first))
        with nullcontext() if draws is None else draws.taking():
            output = self.readers[cell].read(state_BLD, its_own, own)
        return with_hidden(output, self.passes.behind(hidden_of(output)))

    def _together(self, states: dict[int, Tensor], forward: Forward) -> Tensor:
        """All cells' states as one: [1, T, D]; behind the last layer [B of all cells, L, D]."""
        if not self.is_last:
            return torch.cat([state_BLD.flatten(0, 1) for state_BLD in states.values()])[None]
        end, shares = forward.batch.input_ids.shape[1], forward.batch.shares
        columns = {cell: shares[cell].columns for cell in states}
        return torch.cat([F.pad(x, (0, 0, columns[c].start, end - columns[c].stop)) for c, x in states.items()])
