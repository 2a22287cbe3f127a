"""What a step adds up to, over its micro-batches and all ranks: on the device, in one reduction, read once."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from flare_ds.runtime.process_group import added_up, gather_objects
from flare_ds.training.feed import Portion


class Tally:
    """Of one step, on one rank."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.rows: list[list[int]] = []
        self.counts: Counter[str] = Counter()

    def add(self, portion: Portion, loss: Tensor) -> None:
        """Note a micro-batch and its loss sum, which is not waited for."""
        self.losses.append(loss)
        self.rows.append(portion.rows)
        self.counts.update(portion.costs)

    def over_ranks(self, wishes: Mapping[str, bool]) -> None:
        """Add up losses, costs and what each rank wishes to be done after the step; a collective, not waited for."""
        self.counts.update(wishes)
        loss = torch.stack(self.losses).double().sum()
        # A float64 holds counts up to 9e15 exactly.
        counts = torch.tensor([*self.counts.values()], dtype=torch.float64).to(loss.device, non_blocking=True)
        self.sums = added_up(torch.cat([loss[None], counts]))

    def read(self) -> dict[str, float]:
        """The sums by name; waits for the device."""
        loss, *counts = self.sums.tolist()
        return {"loss": loss, **dict(zip(self.counts, map(int, counts), strict=True))}

    def suspects(self) -> list[int]:
        """Rows, of all ranks, of micro-batches whose loss is not finite; a collective that takes its time."""
        finite = torch.stack(self.losses).isfinite().tolist()
        mine = [row for rows, good in zip(self.rows, finite, strict=True) if not good for row in rows]
        return sorted(row for rows in gather_objects(mine) for row in rows)
