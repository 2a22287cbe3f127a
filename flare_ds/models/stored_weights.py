"""Whether a model in memory is what its files hold: one merged or trained there keeps the name of the files."""

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from flare_ds.adapters.decoder import decoder_layers, linears_of
from flare_ds.exceptions import FlareError
from flare_ds.files import open_tensors
from flare_ds.model_files.hub import directory_of
from flare_ds.models.partitioned import is_partitioned
from flare_ds.models.weight_names import files_of_weights, names_in_files

_PRECISIONS = ("F32", "BF16", "F16")


def changed_weight(model: PreTrainedModel, base: str) -> str | None:
    """The name of a linear layer's matrix that has other values than in the files of a base.

    Of each one in the decoder layers the middle row is compared, rounded to bfloat16: in which precision the files were
    loaded does not matter.

    Args:
        model: without an adapter.
        base: directory of the base, or its hub name.

    Returns:
        The first; None: all are the same, or it cannot be told, as of a quantised model, or of files in another format.
    """
    try:
        inside = {
            getattr(linear, "weight", None) for layer in decoder_layers(model) for linear in linears_of(layer).values()
        }
        directory = directory_of(base)
        file_of = files_of_weights(directory)
        stored = names_in_files(model, file_of)
        for file in sorted(set(file_of.values())):
            with open_tensors(directory / file) as tensors:
                for name, weight in model.named_parameters():
                    here = weight in inside and name in stored and file_of[stored[name]] == file
                    if here and _is_other(weight, tensors, stored[name]):
                        return name
    except (OSError, ValueError, FlareError, SafetensorError):
        pass
    return None


def _is_other(weight: nn.Parameter, tensors: safe_open, stored: str) -> bool:
    rows = tensors.get_slice(stored)
    plain = type(weight) is nn.Parameter and weight.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if not plain or weight.is_meta or is_partitioned(weight) or rows.get_dtype() not in _PRECISIONS:
        return False
    middle = slice(len(weight) // 2, len(weight) // 2 + 1)
    return not torch.equal(weight.detach()[middle].to("cpu", torch.bfloat16), rows[middle].to(torch.bfloat16))
