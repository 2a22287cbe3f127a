"""Will it fit: an estimate of one rank's peak memory, made before any weight is loaded.

Rough on purpose (a factor of two is common between attention implementations); it exists to stop a batch that
cannot fit, which on a CPU would end in the kernel killing a rank without a word.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from flare_ds.adapters.decoder import decoder_layers, linears_of
from flare_ds.batches.workload import Workload
from flare_ds.config import Config, TrainConfig
from flare_ds.exceptions import HostError
from flare_ds.models.partitioned import full_numel
from flare_ds.models.quantized import stored_size
from flare_ds.runtime.free_memory import free_host_memory
from flare_ds.runtime.process_group import device, world_size

_GB = 1e9
_RUNTIME = 1e9
"""What a process needs beside the model."""
_TRAINED = 20
"""Bytes a trained element: in fp32 itself, its gradient, its two moments, and what is sent between ranks."""
_LOGIT = 16
"""Bytes a logit takes from the head to the loss, or to the word that is chosen; see benchmarks/head_memory.py."""


@dataclass(frozen=True)
class Estimate:
    """Bytes one rank needs.

    Attributes:
        fixed: what it holds of the base, the adapter and its optimizer; where the ranks share the base also the
            gathered layers and the embedding, and at least the whole base if that is quantised, since it is sharded
            after it is loaded.
        trained: of that the adapter and its optimizer.
        per_token: what a padded token, of any stream that runs, keeps for the backward pass.
    """

    fixed: float
    trained: float
    per_token: float

    def bytes(self, tokens: int) -> float:
        """The peak with so many padded tokens in a micro-batch."""
        return self.fixed + tokens * self.per_token


@dataclass(frozen=True)
class Load:
    """The largest micro-batch of a run.

    Attributes:
        setting: what limits it.
        value: of the setting.
        tokens_each: padded tokens that one more of it is.
        row_tokens: padded tokens of the longest row, over the streams that run.
        streams: how many run, the target's included.
        words: answer positions of the row with the most that are predicted over the whole vocabulary.
        rows: most rows that a step has for a rank; None: as many as fit into its tokens.
    """

    setting: str
    value: int
    tokens_each: int
    row_tokens: int
    streams: int
    words: int
    rows: int | None

    @property
    def columns(self) -> int:
        """Padded tokens of the longest row in each stream."""
        return self.row_tokens // self.streams

    @property
    def tokens(self) -> int:
        """Its padded tokens; a row is not cut."""
        allowed = max(self.row_tokens, self.value * self.tokens_each)
        return allowed if self.rows is None else min(allowed, self.rows * self.row_tokens)


def largest_load(train: TrainConfig, *, row_tokens: int, streams: int, ranks: int, words: int = 0) -> Load:
    """The largest micro-batch that the settings allow, of a step that so many ranks share; see `Load`."""
    by_size, by_tokens = train.micro_batch_size, train.micro_batch_tokens
    rows = ceil(train.batch_size / ranks) if train.batch_tokens is None else None
    if by_tokens is not None and by_tokens < by_size * row_tokens:
        return Load("train.micro_batch_tokens", by_tokens, 1, row_tokens, streams, words, rows)
    return Load("train.micro_batch_size", by_size, row_tokens, row_tokens, streams, words, rows)


@dataclass(frozen=True)
class Size:
    """What is needed, and what there is, in bytes."""

    needed: float
    available: float

    @property
    def fits(self) -> bool:
        """Whether there is enough."""
        return self.needed <= self.available

    def __str__(self) -> str:
        needed, free, how = self.needed / _GB, self.available / _GB, "and" if self.fits else "but"
        return f"needs about {needed:.1f} GB on each rank, {how} {free:.1f} GB are free for it"


def estimate_memory(
    config: Config, shape: PreTrainedModel, *, streams: int, ranks: int | None, columns: int = 0, words: int = 0
) -> Estimate:
    """Estimate a training rank's peak memory.

    Args:
        config: the run's settings.
        shape: the base on the meta device.
        streams: how many run, the target's included.
        ranks: how many share the base; None: each holds it whole.
        columns: of the longest row in one stream, for each of which eager attention keeps a number a head and token.
        words: of its positions, how many are predicted over the whole vocabulary; needs `columns`.
    """
    layers, weights = decoder_layers(shape), _weights(config, shape)
    # A fp32 copy of each projection's and each norm's input, and the activations between them.
    text, itemsize, runs = shape.config.get_text_config(), getattr(torch, config.model.dtype).itemsize, Workload(config)
    width = text.hidden_size
    inside = [4 * (12 * width + 6 * _widest_input(layer)) for layer in layers]
    maps = 8 * text.num_attention_heads * columns * (1 + runs.reads_keys) if config.model.attention == "eager" else 0
    per_trained_token = sum(inside) + len(layers) * maps
    if config.train.gradient_checkpointing:  # each layer keeps what it reads, and one is computed again
        per_trained_token = len(layers) * itemsize * width + max(inside) + maps
    # What meets the target in the bottleneck keeps little; what trains beside it keeps as much as the target.
    per_column = runs.trained * per_trained_token + 0.2 * (runs.met + runs.reads_keys) * sum(inside)
    per_column += _LOGIT * text.vocab_size * words / max(columns, 1)
    trained: float = _TRAINED * _trained_elements(config, shape)
    if ranks is None:
        held = weights + trained
    else:
        embedding = itemsize * _elements(shape.get_input_embeddings())
        layer = (weights - embedding) / len(layers)
        trained /= ranks
        held = weights / ranks + trained + embedding + 3.5 * layer
        held = held if config.model.quantization == "none" else max(held, weights)
    return Estimate(fixed=held + _RUNTIME, trained=trained, per_token=per_column / streams)


def joint_memory(configs: Sequence[Config], shape: PreTrainedModel, loads: Sequence[Load], *, whole: bool) -> Size:
    """What the largest micro-batches of cells that train together, or of one alone, take on this rank.

    `whole` says whether it holds the whole base.
    """
    needed = joint_bytes(configs, shape, loads, ranks=None if whole else world_size())
    return Size(needed, _available(device()))


def joint_bytes(
    configs: Sequence[Config], shape: PreTrainedModel, loads: Sequence[Load], *, ranks: int | None
) -> float:
    """What the largest micro-batches of cells that train together take on a rank; see `estimate_memory`."""
    estimates = [
        estimate_memory(config, shape, streams=load.streams, ranks=ranks, columns=load.columns, words=load.words)
        for config, load in zip(configs, loads, strict=True)
    ]
    kept = sum(load.tokens * estimate.per_token for load, estimate in zip(loads, estimates, strict=True))
    return estimates[0].fixed + sum(estimate.trained for estimate in estimates[1:]) + kept


def check_memory(config: Config, shape: PreTrainedModel, load: Load, *, whole: bool) -> None:
    """Refuse a micro-batch that cannot fit, before anything is loaded; see `joint_memory`.

    Raises:
        HostError: naming the setting, what it needs, what there is, and the largest value that fits.
    """
    ranks = None if whole else world_size()
    estimate = estimate_memory(config, shape, streams=load.streams, ranks=ranks, columns=load.columns, words=load.words)
    size = Size(estimate.bytes(load.tokens), _available(device()))
    if size.fits:
        return
    fitting = int((size.available - estimate.fixed) // estimate.per_token)
    fix = f"set {load.setting}={fitting // load.tokens_each} (the step stays the same: gradients are accumulated)"
    if fitting < load.row_tokens:
        fix = _less(config, "train", whole=whole)
        if fitting > 0 and not config.train.gradient_checkpointing:
            fix = f"set train.gradient_checkpointing=true, which recomputes each layer in the backward pass; or {fix}"
    raise HostError(f"{load.setting}={load.value} {size} (longest row: {load.columns} tokens)", fix=fix)


def _less(config: Config, section: Literal["train", "evaluate"], *, whole: bool) -> str:
    """What helps where not even the base, or a row beside it, has room; `section` is that of `whole_model`."""
    if config.model.quantization != "none":  # a rank holds all of it before it is shared out
        return "use a GPU with more memory; or, in a new run, a smaller base model"
    if whole and world_size() > 1:
        return f"set {section}.whole_model=false, so that the ranks share the base"
    nf4 = "model.quantization=nf4"
    other = {"train": f"in a new run, {nf4} or a smaller base model", "evaluate": nf4}[section]
    return f"use more ranks on more machines, which share the base ({section}.whole_model=auto); or, {other}"


def whole_model_problem(config: Config, shape: PreTrainedModel, on: torch.device, *, bases: int = 1) -> str | None:
    """Why the room of so many whole bases is not on a device: what it needs, and what there is; None: it is."""
    size = Size(bases * _weights(config, shape) + _RUNTIME, _available(on))
    return None if size.fits else str(size)


def check_whole_model(config: Config, shape: PreTrainedModel) -> None:
    """Refuse to load the whole base on every rank where it does not fit.

    Raises:
        HostError: naming what it needs and what there is.
    """
    if problem := whole_model_problem(config, shape, device()):
        held = "evaluate.whole_model=true" if config.evaluate.whole_model is True else "the whole base, on one rank,"
        raise HostError(f"{held} {problem}", fix=_less(config, "evaluate", whole=True))


def _trained_elements(config: Config, shape: PreTrainedModel) -> int:
    """At most so many train: matrices beside every linear layer, A's of their own for sources, a whole head."""
    linears = (linear for layer in decoder_layers(shape) for linear in linears_of(layer).values())
    adapter = config.adapter.r * sum(2 * linear.in_features + linear.out_features for linear in linears)
    has_head = config.adapter.train_head and config.train.objective == "vocabulary"
    return adapter + (_elements(shape.get_input_embeddings()) if has_head else 0)


def largest_forward(
    config: Config, base: PreTrainedModel, on: torch.device, *, row_tokens: int, logits: int, written: int
) -> int:
    """Padded tokens of the largest forward pass that fits into half of what is free, if nothing is kept for a backward.

    A power of two, since no two moments have the same memory free.

    Args:
        config: the run's settings.
        base: loaded, sharded or whole.
        on: where its batches are.
        row_tokens: of the longest row, over the streams that run.
        logits: answer positions of a row that are scored over the whole vocabulary.
        written: tokens decoded behind each row, which keeps the keys and values of all before.
    """
    text, layers = base.config.get_text_config(), len(decoder_layers(base))
    width, heads = text.hidden_size, text.num_attention_heads
    inside = 4 * (16 * width + 4 * max(4 * width, getattr(text, "intermediate_size", None) or 0))
    pairs = 8 * heads * row_tokens if config.model.attention == "eager" else 0
    head = _LOGIT * text.vocab_size * max(logits, written > 0) / row_tokens
    pair = 2 * getattr(torch, config.model.dtype).itemsize * width // heads
    kept = layers * pair * (getattr(text, "num_key_value_heads", None) or heads) * (1 + written / row_tokens)
    fitting = int(_available(on) / 2 / (inside + pairs + head + kept * (written > 0)))
    return 1 << max(0, fitting.bit_length() - 1)


def fits_whole_beside(model: nn.Module) -> bool:
    """Whether a model that lies in shards fits whole beside them, and leaves as much free again."""
    whole = sum(full_numel(parameter) * parameter.element_size() for parameter in model.parameters())
    return 2 * whole <= _available(device())


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
        kept = torch.cuda.memory_reserved(on) - torch.cuda.memory_allocated(on)  # by torch, from what was freed
        return float(torch.cuda.mem_get_info(on)[0] + kept)
    local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size()
    return free_host_memory() / int(local)
