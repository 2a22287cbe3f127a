"""The sharded embedding: rows looked up where they lie, instead of gathering the whole table in every forward.

ZeRO-3 gathers a module's weights whole before it runs. For an embedding that is the largest gather of the step (168 of
Gemma 3 270M's 268 M parameters) to read a few hundred rows. The table is frozen, so each rank keeps its shard and the
ranks exchange rows:

    my token ids -> everybody's ids -> rows (or parts of rows) in my shard, zero elsewhere -> sum over ranks -> my rows

A sum of one value and zeros is exact, so the result is the table's, bit for bit.

Legend: U distinct tokens of this rank, A tokens asked for by all ranks, D the table's width.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from flare_ds.models.partitioned import is_partitioned


def shard_embedding(base: PreTrainedModel) -> None:
    """Make a partitioned base look its tokens up in shards; a whole base stays as it is.

    The embedding module keeps its class, so whatever it does to the rows (scaling, say) is still done; only its
    weight is no longer a parameter that DeepSpeed gathers. A tied output matrix keeps its own use of the weight.
    """
    module = base.get_input_embeddings()
    weight = module.weight
    if not isinstance(weight, nn.Parameter) or not is_partitioned(weight):
        return
    del module._parameters["weight"]
    # Rows are renumbered below, and a frozen table has no gradient to leave out.
    setattr(module, "padding_idx", None)  # noqa: B010 - a plain attribute, unknown to torch's types
    module.forward = _ShardedLookup(module, weight)


class _ShardedLookup:
    """Stands in for the embedding module's forward."""

    def __init__(self, module: nn.Module, weight: nn.Parameter) -> None:
        self.module, self.embed = module, module.forward
        self.shard: Tensor = getattr(weight, "ds_tensor").data  # noqa: B009 - DeepSpeed's attribute
        self.vocabulary, self.width = getattr(weight, "ds_shape")  # noqa: B009

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Embed token ids of any shape; a collective: every rank calls it as often as the others."""
        ids_U, places = input_ids.unique(return_inverse=True)
        assert int(ids_U[-1]) < self.vocabulary, "a token without a row would be read as zeros"
        self.module.weight = self._rows(ids_U)
        try:
            return self.embed(places)
        finally:
            del self.module.weight

    def _rows(self, ids_U: Tensor) -> Tensor:
        """The table's rows [U, D] of this rank's tokens."""
        counts = torch.zeros(dist.get_world_size(), dtype=torch.long, device=ids_U.device)
        counts[dist.get_rank()] = len(ids_U)
        dist.all_reduce(counts)
        first = int(counts[: dist.get_rank()].sum())
        ids_A = torch.zeros(int(counts.sum()), dtype=torch.long, device=ids_U.device)
        ids_A[first : first + len(ids_U)] = ids_U
        dist.all_reduce(ids_A)
        rows_AD = self._from_my_shard(ids_A)
        dist.all_reduce(rows_AD)
        return rows_AD[first : first + len(ids_U)]

    def _from_my_shard(self, ids_A: Tensor) -> Tensor:
        """Rows [A, D] with zeros wherever another rank holds the element; a shard may end within a row."""
        columns_D = torch.arange(self.width, device=ids_A.device)
        elements_AD = ids_A[:, None] * self.width + columns_D - dist.get_rank() * self.shard.numel()
        mine_AD = (elements_AD >= 0) & (elements_AD < self.shard.numel())
        values_AD = self.shard[elements_AD.clamp(0, self.shard.numel() - 1)]
        return torch.where(mine_AD, values_AD, torch.zeros_like(values_AD))
