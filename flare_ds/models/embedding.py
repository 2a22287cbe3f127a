"""The sharded embedding: a batch's rows are read on its host, from the base's own file, instead of being gathered.

ZeRO-3 gathers a module's weights whole before it runs. For an embedding that is the largest gather of the step (168 of
Gemma 3 270M's 268 M parameters) to read a few hundred rows. The table is frozen, and every host has it on disk: mapped
into memory it costs no rank anything, as all ranks of a host share the page cache.

    a batch's token ids, on the host -> the distinct ones -> their rows in the file -> the device, beside the batch

What a file calls the table, and in which precision it holds it, is its own affair: it is taken if its values are those
that were loaded. A base whose table is in no safetensors file keeps its embedding as it is, gathered by ZeRO-3.

Legend: X rows, L columns, U distinct tokens, V words, D the table's width.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from flare_ds.batches.collate import Batch, sent
from flare_ds.batches.joined import JointBatch
from flare_ds.exceptions import CheckpointError
from flare_ds.files import open_tensors
from flare_ds.model_files.hub import directory_of
from flare_ds.model_files.weight_files import weight_files
from flare_ds.models.partitioned import is_partitioned


class HostRows:
    """Stands in for the forward of a partitioned embedding.

    The module keeps its class, so whatever it does to the rows (scaling, say) is still done; only its weight is no
    longer a parameter that DeepSpeed gathers. A tied output matrix keeps its own use of the weight.

    Args:
        module: the embedding.
        table_VD: its values, mapped from a file, perhaps in another precision.
        dtype: in which they are read.
    """

    def __init__(self, module: nn.Module, table_VD: Tensor, dtype: torch.dtype) -> None:
        self.module, self.embed = module, module.forward
        self.table_VD, self.dtype = table_VD, dtype
        del module._parameters["weight"]
        # Rows are renumbered below, and a frozen table has no gradient to leave out.
        setattr(module, "padding_idx", None)  # noqa: B010 - a plain attribute, unknown to torch's types
        module.forward = self

    def read(self, batch: Batch | JointBatch) -> None:
        """Fetch the rows of the batch whose forward comes next; nothing waits for the device."""
        device = batch.input_ids.device
        ids_U, places_XL = batch.host_ids.unique(return_inverse=True)
        self.rows_UD = sent(self.table_VD[ids_U].to(self.dtype), device)
        self.places_XL = sent(places_XL, device)

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Embed the token ids [X, L] of the batch that was read."""
        assert input_ids.shape == self.places_XL.shape, "these are another batch's"
        self.module.weight = self.rows_UD
        try:
            return self.embed(self.places_XL)
        finally:
            del self.module.weight


def read_on_host(base: PreTrainedModel, name: str) -> HostRows | None:
    """Let the embedding of a partitioned base be read from a file; a collective.

    Args:
        base: as it was loaded.
        name: directory of the base, or its hub name.

    Returns:
        What reads the rows of each batch; None: the base is whole, or its table is in no file.
    """
    module = base.get_input_embeddings()
    weight = module.weight
    if not isinstance(weight, nn.Parameter) or not is_partitioned(weight):
        return None
    called = next(name for name, found in base.named_modules() if found is module)
    table_VD = _table(directory_of(name), f"{called.rpartition('.')[2]}.weight", weight)
    found = torch.tensor(table_VD is not None, dtype=torch.int, device=weight.device)
    dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return HostRows(module, table_VD, weight.dtype) if table_VD is not None and found else None


def _table(directory: Path, ending: str, weight: nn.Parameter) -> Tensor | None:
    """The matrix of this name, shape and values in a model's files, mapped into memory."""
    try:
        files = weight_files(directory)
    except (CheckpointError, ValueError):
        return None
    for file in files:
        with open_tensors(directory / file) as tensors:
            for name in filter(lambda name: name.endswith(ending), tensors.keys()):
                if _is_loaded(table_VD := tensors.get_tensor(name), weight):
                    return table_VD
    return None


def _is_loaded(table_VD: Tensor, weight: nn.Parameter) -> bool:
    """Whether a partitioned weight has these values, as far as this rank can tell by its shard."""
    if table_VD.shape != getattr(weight, "ds_shape"):  # noqa: B009 - DeepSpeed's attribute
        return False
    shard: Tensor = getattr(weight, "ds_tensor").data.cpu()  # noqa: B009
    mine = table_VD.flatten()[dist.get_rank() * shard.numel() :][: shard.numel()]
    same = mine.to(shard.dtype).contiguous().view(torch.uint8), shard[: len(mine)].contiguous().view(torch.uint8)
    return torch.equal(*same)  # by their bytes: a table may hold NaN
