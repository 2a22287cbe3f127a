"""A frozen base in 4 or 8 bits: bitsandbytes stores the weights, and every use dequantises them.

    nf4    4-bit codes, an fp32 scale for every 64 weights, no double quantisation      0.56 bytes a weight
    int8   8-bit numbers, an fp32 scale for every row                                   1 byte a weight

The linear layers of the decoder are stored so; embedding, norms and head stay in `model.dtype`, the adapters in fp32.
Quantisation is of storage only: a layer computes x·Wᵀ with the dequantised W, in the precision of x, on every device.

The layers are bitsandbytes' own (PEFT knows them), but their forward is replaced, because it is not made for a frozen
base in shards: for nf4, a CPU with bf16 instructions repacks the weights in the first forward without a gradient,
after which no gradient passes the layer and weights gathered anew are read in the wrong order; for int8, each layer
keeps all its weights beside the parameter, so nothing is sharded, and the input is rounded too, by what the other rows
of the batch hold.

transformers builds a quantised base whole on every rank; codes and scales are sharded right after. The size of what was
whole, and the peak, are printed.

Legend: D width of a layer's input, O of its output; "..." any number of leading dimensions.
"""

import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import BitsAndBytesConfig, PreTrainedModel

from flare_ds.adapters.decoder import linears_of
from flare_ds.config import ModelConfig
from flare_ds.exceptions import HostError
from flare_ds.extras import install, lacking
from flare_ds.host import peak_memory
from flare_ds.models.partitioned import partition

_BLOCK = 64  # weights that share a scale in nf4


def quantization_config(model: ModelConfig) -> BitsAndBytesConfig | None:
    """What transformers is to quantise while it loads; None: nothing.

    Raises:
        HostError: bitsandbytes is not installed.
    """
    if model.quantization == "none":
        return None
    if missing := lacking("quantization", "bitsandbytes"):
        raise HostError(
            f"model.quantization={model.quantization!r} needs {missing}",
            fix=f"{install('quantization')}, or set model.quantization=none",
        )
    if model.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=False,
        # ZeRO-3 moves the codes about as if they were numbers of the model's own type.
        bnb_4bit_quant_storage=getattr(torch, model.dtype),
    )


def finish_quantized(base: PreTrainedModel, model: ModelConfig) -> None:
    """Make a base that transformers quantised compute from its codes alone; shard it where a ZeRO-3 config is live."""
    for layer in _quantized_layers(base):
        layer.forward = _DequantizedForward(layer)
    whole = sum(parameter.nbytes for parameter in base.parameters())
    partition(base)
    if not dist.is_initialized() or dist.get_rank() == 0:
        megabytes = f"{whole / 1e6:.1f} MB of weights; peak of this rank so far {peak_memory() / 1e6:.0f} MB"
        print(f"{model.quantization} base: {megabytes}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class StoredSize:
    """What a part of the base takes once it is loaded.

    Attributes:
        elements: as ZeRO-3 counts them: several 4-bit codes lie in one element of `model.dtype`.
        bytes: what they take.
    """

    elements: int
    bytes: int


def stored_size(layer: nn.Module, model: ModelConfig) -> StoredSize:
    """The size of a decoder layer, read off its shape before it is loaded."""
    itemsize = getattr(torch, model.dtype).itemsize
    matrices = [linear.weight for linear in linears_of(layer).values()]
    weights = sum(matrix.numel() for matrix in matrices)
    rest = sum(parameter.numel() for parameter in layer.parameters()) - weights
    match model.quantization:
        case "nf4":
            scales = sum(-(-matrix.numel() // _BLOCK) for matrix in matrices)
            return StoredSize(weights // (2 * itemsize) + scales + rest, weights // 2 + 4 * scales + itemsize * rest)
        case "int8":
            scales = sum(matrix.shape[0] for matrix in matrices)
            return StoredSize(weights + scales + rest, weights + 4 * scales + itemsize * rest)
    return StoredSize(weights + rest, itemsize * (weights + rest))


def _quantized_layers(base: PreTrainedModel) -> list[Any]:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return [module for module in base.modules() if isinstance(module, (Linear4bit, Linear8bitLt))]


class _DequantizedForward:
    """Stands in for the forward of one bitsandbytes layer.

    The scales become a parameter of the layer, and bitsandbytes' own references to scales and codes go, for they would
    outlive the sharding.
    """

    def __init__(self, layer: Any) -> None:
        self.layer, weight = layer, layer.weight
        self.is_int8 = weight.dtype == torch.int8
        scale = weight.SCB if self.is_int8 else weight.quant_state.absmax
        layer.scale = nn.Parameter(scale, requires_grad=False)
        if self.is_int8:
            weight.CB = weight.SCB = None
        else:
            weight.quant_state = layer.quant_state = None

    def __call__(self, x: Tensor) -> Tensor:
        """[..., D] in, [..., O] out."""
        return _MultiplyDequantized.apply(x, self)

    def weight_OD(self, dtype: torch.dtype) -> Tensor:
        """The whole weight, dequantised."""
        from bitsandbytes.functional import QuantState, dequantize_4bit, int8_vectorwise_dequant

        codes, scale = self.layer.weight.data, self.layer.scale.data
        if self.is_int8:
            return int8_vectorwise_dequant(codes, scale).to(dtype)
        shape_OD = torch.Size([self.layer.out_features, self.layer.in_features])
        return dequantize_4bit(codes, QuantState(scale, shape_OD, blocksize=_BLOCK, quant_type="nf4", dtype=dtype))


class _MultiplyDequantized(torch.autograd.Function):
    """x·Wᵀ + bias, which dequantises W again in the backward pass instead of keeping it.

    It keeps the layer, not the codes: ZeRO-3 takes them away after the forward and gathers them for the backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _DequantizedForward) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.weight_OD(x.dtype), layer.layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.weight_OD(gradient.dtype), None
