"""Fusion functions: how a source and a target meet inside LoRA's bottleneck (paper, section "Fusion functions").

    S = A·source, T = A·target        both [B, L, R]: one source vector already chosen for each target position
    φ(S, T)                           [B, L, R], goes on through B

Legend: B rows, L positions, R width of the bottleneck.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from flare_ds.registry import Registry

FusionFunction = Callable[[Tensor, Tensor], Tensor]

FUSIONS: Registry[FusionFunction] = Registry("fusion function")


def add(source_BLR: Tensor, target_BLR: Tensor) -> Tensor:
    """S + T."""
    return source_BLR + target_BLR


def add_relu(source_BLR: Tensor, target_BLR: Tensor) -> Tensor:
    """ReLU(S) + ReLU(T), the paper's best."""
    return torch.relu(source_BLR) + torch.relu(target_BLR)


def mul(source_BLR: Tensor, target_BLR: Tensor) -> Tensor:
    """S ∘ T, element by element."""
    return source_BLR * target_BLR


def mul_relu(source_BLR: Tensor, target_BLR: Tensor) -> Tensor:
    """ReLU(S) ∘ ReLU(T)."""
    return torch.relu(source_BLR) * torch.relu(target_BLR)


for _function in (add_relu, add, mul, mul_relu):
    FUSIONS.add(_function.__name__, _function)
