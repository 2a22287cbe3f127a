"""What the parts of gpu.py share: sizes and bases, the device's clock and memory, and a training that is stopped."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from memory import peak_memory
from step_cost import label_tokens
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import LlamaConfig, LlamaForCausalLM
from workload import REPOSITORY, make_config, method_batch

from flare_ds.config import Config
from flare_ds.exceptions import ToBeContinued
from flare_ds.models.two_stream import TwoStreamModel, build_model
from flare_ds.runtime.process_group import device

STEPS = 4


class Sizes:
    """Sizes of the parts; `tiny`: as small as they run."""

    def __init__(self, tiny: bool) -> None:
        self.layers, self.all_layers = (2, 2) if tiny else (8, 32)
        self.width, self.inside, self.heads, self.kv_heads = (64, 128, 4, 2) if tiny else (4096, 14336, 32, 8)
        self.vocabulary = 512 if tiny else 128_256
        self.columns = (8, 9) if tiny else (64, 65, 128, 192)
        self.tokens = (16, 32) if tiny else (512, 2048, 8192)
        self.rows, self.length = (2, 8) if tiny else (16, 128)

    def base(self, directory: Path, layers: int, **settings: Any) -> LlamaForCausalLM:
        """A random Llama of these sizes, in bfloat16, on the device; kept in the directory, unless that is there."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inside,
            num_hidden_layers=layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            pad_token_id=None,
            **settings,
        )
        with device():
            model = LlamaForCausalLM(config).bfloat16()
        if not directory.exists():
            model.save_pretrained(directory)
        return model

    def config(self, directory: Path, layers: int, *, method: str = "flare", dtype: str = "bfloat16") -> Config:
        """Settings of a run with label words on a base of so many layers."""
        place = directory / str(layers)
        if not place.exists():
            self.base(place, layers)
        shards = REPOSITORY / "ds_configs/zero3_bf16.json" if on_gpu() else None
        return make_config(
            place, method=method, batch=self.rows, dtype=dtype, deepspeed=shards, objective="labels", form={}
        )

    def batch(self, config: Config, *, rows: int | None = None) -> Any:
        """Random rows."""
        return method_batch(config, vocabulary=self.vocabulary, rows=rows or self.rows, length=self.length)


def whole(config: Config, where: torch.device) -> TwoStreamModel:
    """The model on one device."""
    return build_model(config, label_tokens=label_tokens(config) or []).to(where).train()


def timed(step: Callable[[], object]) -> float:
    """Seconds of a step, the device's work included."""
    synchronize()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    synchronize()
    return (time.perf_counter() - began) / STEPS


def synchronize() -> None:
    """Wait for the device."""
    if on_gpu():
        torch.cuda.synchronize()


def on_gpu() -> bool:
    """Whether this is about a GPU."""
    return device().type == "cuda"


@contextmanager
def device_peak() -> Iterator[dict[str, int]]:
    """Like `peak_memory`, of the device."""
    if not on_gpu():
        with peak_memory() as of_host:
            yield of_host
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    found: dict[str, int] = {}
    yield found
    found["peak_bytes"] = torch.cuda.max_memory_allocated()


@contextmanager
def told_to_stop() -> Iterator[None]:
    """A training that is told to stop says so."""
    try:
        yield
    except ToBeContinued:
        return
    raise AssertionError("the training did not stop")


@contextmanager
def stopping_at(step: int) -> Iterator[None]:
    """Ask this process to stop, as a cluster would, in a step's forward."""
    seen: list[int] = []

    def at_forward(module: nn.Module, _: Any) -> None:
        if isinstance(module, TwoStreamModel) and module.training:
            seen.append(1)
            if len(seen) == step:
                os.kill(os.getpid(), signal.SIGTERM)

    hook = register_module_forward_pre_hook(at_forward)
    yield
    hook.remove()
