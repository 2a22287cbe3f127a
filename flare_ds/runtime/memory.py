"""Will it fit: an estimate of one rank's peak memory, made before any weight is loaded.

Rough on purpose (a factor of two is common between attention implementations); it exists to stop a batch that
cannot fit, which on a CPU would end in the kernel killing a rank without a word.
"""

import os
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from flare_ds.adapters.decoder import decoder_layers
from flare_ds.batches.workload import Workload
from flare_ds.config import Config, TrainConfig
from flare_ds.exceptions import HostError
from flare_ds.models.quantized import stored_size
from flare_ds.runtime.free_memory import free_host_memory
from flare_ds.runtime.process_group import device, world_size

_GB = 1e9
_RUNTIME = 1e9
"""What a process needs beside the model."""


@dataclass(frozen=True)
class Estimate:
    """Bytes one rank needs.

    Attributes:
        fixed: its shard of the base, the gathered layers and the embedding, the adapter and its optimizer; at least
            the whole base if that is quantised, since it is sharded after it is loaded.
        per_token: what a padded token, of any stream that runs, keeps for the backward pass.
    """

    fixed: float
    per_token: float

    def bytes(self, tokens: int) -> float:
        """The peak with so many padded tokens in a micro-batch."""
        return self.fixed + tokens * self.per_token


def estimate_memory(config: Config, shape: PreTrainedModel, *, streams: int, ranks: int) -> Estimate:
    """Estimate a training rank's peak memory.

    Args:
        config: the run's settings.
        shape: the base on the meta device.
        streams: how many run, the target's included.
        ranks: how many share the base.
    """
    layers, weights = decoder_layers(shape), _weights(config, shape)
    embedding = getattr(torch, config.model.dtype).itemsize * _elements(shape.get_input_embeddings())
    layer = (weights - embedding) / len(layers)
    # A fp32 copy of each projection's and each norm's input, and the activations between them.
    width = shape.config.get_text_config().hidden_size
    per_target_token = 4 * sum(12 * width + 6 * _widest_input(layer) for layer in layers)
    # What meets the target in the bottleneck keeps little; what trains beside it keeps as much as the target.
    runs = Workload(config)
    beside = runs.trained - 1 + 0.2 * runs.met
    per_column = (1 + beside) * per_target_token
    training = weights / ranks + embedding + 3.5 * layer
    loading = 0.0 if config.model.quantization == "none" else weights
    return Estimate(fixed=max(training, loading) + _RUNTIME, per_token=per_column / streams)


def check_memory(config: Config, shape: PreTrainedModel, *, row_tokens: int, streams: int) -> None:
    """Refuse a micro-batch that cannot fit, before anything is loaded.

    Args:
        config: the run's settings.
        shape: the base on the meta device.
        row_tokens: padded tokens of the longest row, over the streams that run.
        streams: how many run, the target's included.

    Raises:
        HostError: naming the setting, what it needs, what there is, and the largest value that fits.
    """
    estimate = estimate_memory(config, shape, streams=streams, ranks=world_size())
    available = _available(device())
    setting, value, tokens_each = _limit(config.train, row_tokens)
    tokens = max(row_tokens, value * tokens_each)
    if estimate.bytes(tokens) <= available:
        return
    fitting = int((available - estimate.fixed) // estimate.per_token)
    raise HostError(
        f"{setting}={value} needs about {estimate.bytes(tokens) / _GB:.1f} GB on each rank "
        f"(longest row: {row_tokens // streams} tokens), but {available / _GB:.1f} GB are free for it",
        fix=f"set {setting}={fitting // tokens_each} (a step stays as it is: the rest is accumulated)"
        if fitting >= row_tokens
        else "use more ranks on more machines, or a smaller base model",
    )


def _limit(train: TrainConfig, row_tokens: int) -> tuple[str, int, int]:
    """What limits the largest micro-batch: the setting, its value, and how many padded tokens one of it is."""
    by_size, by_tokens = train.micro_batch_size, train.micro_batch_tokens
    if by_tokens is not None and by_tokens < by_size * row_tokens:
        return "train.micro_batch_tokens", by_tokens, 1
    return "train.micro_batch_size", by_size, row_tokens


def whole_model_problem(config: Config, shape: PreTrainedModel, on: torch.device) -> str | None:
    """Why the whole base cannot be held on a device: what it needs, and what there is; None: it fits."""
    needed, available = _weights(config, shape) + _RUNTIME, _available(on)
    if needed <= available:
        return None
    return f"needs about {needed / _GB:.1f} GB on each rank, but {available / _GB:.1f} GB are free for it"


def check_whole_model(config: Config, shape: PreTrainedModel) -> None:
    """Refuse to load the whole base on every rank where it does not fit.

    Raises:
        HostError: naming what it needs and what there is.
    """
    if problem := whole_model_problem(config, shape, device()):
        fix = "set evaluate.whole_model=false, so that the ranks share the base"
        raise HostError(f"evaluate.whole_model=true {problem}", fix=fix)


def _elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _widest_input(layer: nn.Module) -> int:
    """What the largest matrix product of a layer reads a token: the inside of its feed-forward."""
    return max(parameter.shape[-1] for parameter in layer.parameters() if parameter.ndim > 1)


def _weights(config: Config, shape: PreTrainedModel) -> int:
    """Bytes of the whole base, as it is stored."""
    layers = decoder_layers(shape)
    outside = sum(p.numel() for p in shape.parameters()) - sum(p.numel() for la in layers for p in la.parameters())
    stored = sum(stored_size(layer, config.model).bytes for layer in layers)
    return stored + getattr(torch, config.model.dtype).itemsize * outside


def _available(on: torch.device) -> float:
    """Free bytes for this rank: of its GPU, or its share of the host's."""
    if on.type == "cuda":
        return float(torch.cuda.mem_get_info(on)[0])
    local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size()
    return free_host_memory() / int(local)
