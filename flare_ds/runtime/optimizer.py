"""AdamW over the adapters of one cell or several: each with its own rate, clipping and skipped steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flare_ds.config import TrainConfig


@dataclass(frozen=True)
class Learner:
    """What one cell trains of a model, by name, and how."""

    train: TrainConfig
    parameters: dict[str, nn.Parameter]


class CellsAdamW(torch.optim.AdamW):
    """AdamW whose groups take a step only where their cell does.

    A group has its cell's number (`cell`), what its learning rate is of the schedule's (`ratio`), by what its gradients
    are multiplied (`clip`), and whether it takes the next step (`moves`).

    Args:
        learners: the cells', in the order of their numbers.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        groups = [group for cell, learner in enumerate(learners) for group in _groups(cell, learner)]
        super().__init__(groups, lr=learners[0].train.learning_rate)

    def prepare(self, learners: Sequence[Learner], rates: Mapping[int, float], norms: Mapping[int, float]) -> None:
        """Say what the next step is to be; a cell whose norm is not finite takes none.

        Args:
            learners: all cells'.
            rates: the schedule's, of the cells that are to take one.
            norms: of their gradients.
        """
        for group in self.param_groups:
            norm = norms.get(cell := group["cell"], math.nan)
            group["moves"] = math.isfinite(norm)
            if group["moves"]:
                group["lr"] = rates[cell] * group["ratio"]
                group["clip"] = min(1.0, learners[cell].train.max_grad_norm / (norm + 1e-6))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take it; DeepSpeed calls this once for every group, with the parameters of that one alone."""
        every_group = self.param_groups
        self.param_groups = [group for group in every_group if group["moves"]]
        for group in self.param_groups:
            gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            if gradients and group["clip"] < 1:
                torch._foreach_mul_(gradients, group["clip"])
        super().step()
        self.param_groups = every_group


def _groups(cell: int, learner: Learner) -> list[dict[str, Any]]:
    train, groups = learner.train, dict[float, list[nn.Parameter]]()
    for name, parameter in learner.parameters.items():
        groups.setdefault(train.learning_rate_ratio if "lora_B" in name else 1.0, []).append(parameter)
    shared = {"cell": cell, "lr": train.learning_rate, "weight_decay": train.weight_decay, "clip": 1.0, "moves": True}
    return [{"params": group, "ratio": ratio, **shared} for ratio, group in groups.items()]
