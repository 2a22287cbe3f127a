"""Calling decoder layers for some of the rows of a batch, and again in the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def split_rows(values: Any, rows: int, everybody: int) -> tuple[Any, Any]:
    """Split what a layer is called with into the sources' rows (the first ones) and the target's.

    Tensors with a row for everybody are cut in two; what is shared by all rows goes to both. Vectors are always
    shared: one that counts positions may happen to be as long as there are rows.
    """
    if isinstance(values, Tensor):
        if values.ndim > 1 and values.shape[0] == everybody:
            return values[:rows], values[rows:]
        return values, values
    if isinstance(values, dict):
        halves = {key: split_rows(value, rows, everybody) for key, value in values.items()}
        return {key: half[0] for key, half in halves.items()}, {key: half[1] for key, half in halves.items()}
    if isinstance(values, tuple):
        pairs = [split_rows(value, rows, everybody) for value in values]
        return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    return values, values


def hidden_of(output: Any) -> Tensor:
    """A layer's hidden state: some models' layers return it first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def call_layer(run: Callable[[Tensor], Any], hidden_states: Tensor, *, recompute: bool) -> Any:
    """Call a layer; with `recompute` nothing inside is kept for the backward pass, which calls it again."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(run, hidden_states, use_reentrant=False)
    return run(hidden_states)
