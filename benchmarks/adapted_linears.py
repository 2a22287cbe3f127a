"""What an adapted linear costs beside PEFT's own: step time, bytes kept for the backward pass, modules called; JSON.

    python benchmarks/adapted_linears.py [--layers 4 --width 512] [--steps N] [--batch N] [--length N]

`peft` is PEFT's LoRA, `lora` ours, and `flare` ours with a source. Times: in fp32, all in one process taking turns step
by step, after two that are not counted; medians, as ratios to `peft`. Bytes: over a bf16 base, in one forward, each
storage once, beside the weights. Modules: calls a layer in one forward, which under ZeRO-3 are hooks.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from step_cost import PlainLora
from torch import Tensor, nn
from two_forwards import part
from workload import make_batch, make_config, write_model

from flare_ds.adapters.decoder import decoder_layers
from flare_ds.batches.collate import Batch
from flare_ds.models.loss import loss_sum
from flare_ds.models.two_stream import build_model

VARIANTS = ("peft", "lora", "flare")
VOCABULARY, WARM_UP = 512, 2


def make_model(variant: str, model: Path, dtype: str) -> nn.Module:
    """One variant, in training mode."""
    config = make_config(model, method="flare" if variant == "flare" else "lora", batch=1, dtype=dtype)
    built = PlainLora(config) if variant == "peft" else build_model(config, label_tokens=[])
    return built.train()


def step(model: nn.Module, batch: Batch) -> Tensor:
    """Forward and backward; returns the loss."""
    loss = loss_sum(model(batch), batch.answers_BN, batch.weights_B)
    loss.backward()
    model.zero_grad()
    return loss


def kept_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that a forward keeps for the backward pass, beside the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
    return sum(size for place, size in storages.items() if place not in weights)


def called_modules(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Calls of modules in the first decoder layer, it included."""
    base = next(module for module in model.modules() if hasattr(module, "get_decoder"))
    calls: list[nn.Module] = []
    for module in decoder_layers(base)[0].modules():
        module.register_forward_pre_hook(lambda module, _: calls.append(module))
    forward()
    return len(calls)


def measure(model: Path, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All figures of every variant."""
    both = make_batch(VOCABULARY, rows=arguments.batch, length=arguments.length)
    batches = {name: both if name == "flare" else part(both, slice(-arguments.batch, None)) for name in VARIANTS}
    timed = {name: make_model(name, model, "float32") for name in VARIANTS}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(WARM_UP + arguments.steps):
        for name in VARIANTS:
            start = time.perf_counter()
            step(timed[name], batches[name])
            seconds[name].append(time.perf_counter() - start)
    found: dict[str, dict[str, Any]] = {}
    for name in VARIANTS:
        half, batch = make_model(name, model, "bfloat16"), batches[name]
        found[name] = {
            "median_seconds": statistics.median(seconds[name][WARM_UP:]),
            "kept_bytes": kept_bytes(half, partial(half, batch)),
            "modules_called_a_layer": called_modules(half, partial(half, batch)),
        }
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"layers": 4, "width": 512, "steps": 10, "batch": 8, "length": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = measure(
            write_model(Path(directory), layers=arguments.layers, width=arguments.width, vocabulary=VOCABULARY),
            arguments,
        )
    peft = found["peft"]
    ratios = {name: {key: one[key] / peft[key] for key in peft} for name, one in found.items() if name != "peft"}
    print(json.dumps(vars(arguments) | {"torch": torch.__version__, "variants": found, "over_peft": ratios}, indent=2))


if __name__ == "__main__":
    main()
