"""The output heads of cells over one base that train a head each (adapter.train_head).

    hidden [B of all cells, N, D]     cell 1: its own rows, its own matrix
                                      cell 2: its own rows, its own matrix     ->  logits [B of all cells, N, K]

Legend: B a cell's rows, N answer positions, D width, K logits.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flare_ds.models.head import OutputHead
from flare_ds.models.joint_layer import UnderWay

OF_CELLS = "of_cells"
"""What stands in the names of the cells' heads, before a cell's own."""


class CellHeads(nn.Module):
    """Stands in for the head that one cell would train alone.

    Args:
        head: that, as it begins.
        names: the cells', in the order of their numbers.

    Attributes:
        under_way: whose rows are which; see `JointModel`.
        bias: the head's own, or None; it does not train.
    """

    under_way: UnderWay

    def __init__(self, head: OutputHead, names: Sequence[str]) -> None:
        super().__init__()
        self.add_module(OF_CELLS, nn.ModuleDict({name: deepcopy(head) for name in names}))
        self.bias = head.bias

    def forward(self, hidden_BND: Tensor) -> Tensor:
        """Logits [B, N, K] of the rows of all cells, or of the one that is asked alone."""
        heads, forward = list(self.get_submodule(OF_CELLS).children()), self.under_way.forward
        if forward is None:
            logits_BNK: Tensor = heads[self.under_way.asked](hidden_BND)
            return logits_BNK
        of_cells = hidden_BND.split([rows for rows, _ in forward.shapes.values()])
        return torch.cat([heads[cell](own) for cell, own in zip(forward.shapes, of_cells, strict=True)])


def use_cell_heads(base: PreTrainedModel, names: Sequence[str]) -> None:
    """Let each cell train a head of its own, which begins as the base's does; see `use_head`."""
    head = base.get_output_embeddings()
    assert isinstance(head, OutputHead)
    base.set_output_embeddings(CellHeads(head, names))
