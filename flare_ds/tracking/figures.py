"""What is shown of a step, a validation and a test, and under which names.

Curves stand in groups, in the alphabet's order: what one looks for first (loss, score) comes before what one looks for
when something is wrong (speed, step, time).

    by_language/...   loss and score once more, so that a card holds the runs of one language
    loss/...          of the training rows of a step; of all validation rows
    score/...         the task's metric and what else is measured
    source/...        how much of the adapter's update is due to the source
    speed/...         tokens, examples and operations a second
    step/...          learning rate, norm of the gradient before clipping, padding, gathered weights
    time/...          seconds of a step and of its parts
"""

from collections.abc import Mapping
from typing import Any

import torch

from flare_ds.host import peak_memory, visible_gpus

_BF16_TFLOPS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "GH200": 989,
    "B200": 2250,
    "A100": 312,
    "A800": 312,
    "L40S": 362,
    "A10G": 70,
    "A10": 125,
}
"""Peak of dense bf16 products a second, by a part of the device's name, as its vendor states it; the first counts."""


def of_step(values: Mapping[str, Any], *, ranks: int) -> dict[str, float]:
    """The curves of an optimizer step.

    Operations are counted 2 for each weight and token that a forward reads, 2 more for the backward, which has no
    gradients of frozen weights: 4N a target token and 2N a source token, where training all weights takes 6N. What
    checkpointing computes again does not count. The values are those of a line of train_log.jsonl.
    """
    seconds = values["step_seconds"]
    shown = {
        "loss/train": values["loss"],
        "speed/tokens_per_second": values["tokens"] / seconds,
        "speed/examples_per_second": values["examples"] / seconds,
        "speed/tflops_4N": values["flops"] / seconds / 1e12,
        "speed/mfu_4N": _utilisation(values["flops"] / seconds, ranks),
        "step/learning_rate": values["learning_rate"],
        "step/gradient_norm": values["grad_norm"],
        "step/padding": 1 - values["tokens"] / values["padded_tokens"],
        "step/skipped": "skipped_rows" in values,
        "memory/peak_gb": peak_memory() / 1e9,
        "time/step": seconds,
        **{f"time/{name.removesuffix('_seconds')}": values[name] for name in PARTS if name in values},
    }
    if "gathered_bytes" in values:
        shown |= {"step/gathers": values["gathers"], "step/gathered_gb": values["gathered_bytes"] / 1e9}
    return {name: float(value) for name, value in shown.items() if value is not None}


PARTS = ("data_seconds", "forward_seconds", "backward_seconds", "optimizer_seconds")
"""Of a step, as the host spends them; a GPU may still be at work."""

GATHERED = ("gathers", "gathered_bytes")
"""Of a step, by rank 0, where the ranks share the base."""


def of_validation(metric: float, figures: Mapping[str, float], language: str) -> dict[str, float]:
    """The curves of a validation: the score that adapters are compared by, and all that was measured."""
    here, named = f"by_language/{language}", {name: value for name, value in figures.items() if name != "loss"}
    shown = {"score/validation": metric, f"{here}/score": metric}
    shown |= {f"score/validation_{name}": value for name, value in named.items()}
    if "loss" in figures:
        shown |= {"loss/validation": figures["loss"], f"{here}/loss": figures["loss"]}
    return shown


def of_test(metric: float, figures: Mapping[str, float]) -> dict[str, float]:
    """The figures of the test rows."""
    return {"score/test": metric, **{f"score/test_{name}": value for name, value in figures.items() if name != "loss"}}


def _utilisation(flops_per_second: float, ranks: int) -> float | None:
    """The share of what the devices can do; None: nobody said what that is, as of a slice of one (MIG)."""
    name = torch.cuda.get_device_name() if visible_gpus() else ""
    peaks = [peak for part, peak in _BF16_TFLOPS.items() if part in name and " MIG " not in name]
    return flops_per_second / (peaks[0] * 1e12 * ranks) if peaks else None
