"""Calling decoder layers for some of the rows of a batch, and again in the backward pass.

What a layer is called with beside the state is known by name, and the list is closed:

    by row     masks, positions and the like: each stream gets its own rows; of one row for all, the same
    a store    keys and values for later columns or later layers: a stream writes into its own, never into another's
    a plain value                                                both streams get it

Anything else might be a state that one stream would leave to the other, so it is an error, never a guess.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import __version__

from flare_ds.adapters.passes import Pass, during
from flare_ds.exceptions import ConfigError

_BY_ROW = frozenset({"attention_mask", "position_ids", "position_embeddings", "per_layer_input", "alibi"})
_COLUMNS_LAST = frozenset({"attention_mask", "position_ids", "alibi"})
_ALL = slice(None)
CACHES = ("past_key_values", "cache", "layer_past")
SHARED = "shared_kv_states"
"""Keys and values that a layer leaves to later layers of the same forward."""
OTHER_VERSION = f"or, in place of transformers {__version__}, install the version in constraints.txt, which is tested"
"""What helps where a release calls its layers otherwise."""
STORES = (*CACHES, SHARED)


class LayerCall:
    """How one decoder layer is called.

    Args:
        layer: it; its forward is taken as it is now, before anything stands in for it.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.forward: Callable[..., Any] = layer.forward
        self.kind = type(layer).__name__
        self.names = list(inspect.signature(layer.forward).parameters)[1:]  # beside the state

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What the layer is called with beside the state, by name."""
        return dict(zip(self.names, args, strict=False)) | dict(kwargs)

    def split(
        self, given: Mapping[str, Any], rows: int, everybody: int, *, columns: tuple[slice, slice] = (_ALL, _ALL)
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split named arguments into the sources' rows (the first ones) and the target's; a store is the target's.

        Args:
            given: the arguments.
            rows: how many are the sources'.
            everybody: how many there are.
            columns: which columns the sources' rows are called with, and which the target's.

        Raises:
            ConfigError: an argument is of no known kind.
        """
        source = self.part(given, slice(0, rows), everybody, columns=columns[0])
        target = self.part(given, slice(rows, everybody), everybody, columns=columns[1])
        return source, target | {name: store for name, store in given.items() if name in STORES}

    def part(self, given: Mapping[str, Any], rows: slice, everybody: int, *, columns: slice = _ALL) -> dict[str, Any]:
        """Named arguments of some of the rows, without stores; arguments and errors of `split`."""
        return {name: _cut(name, self._of_rows(name, one, rows, everybody), columns) for name, one in given.items()}

    def _of_rows(self, name: str, value: Any, rows: slice, everybody: int) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if name in STORES:
            return None
        if name in _BY_ROW and isinstance(value, Tensor) and value.ndim:
            if value.shape[0] == 1:
                return value
            if value.shape[0] % everybody == 0:  # some have a line for each row's heads
                lines = value.shape[0] // everybody
                return value[lines * rows.start : lines * rows.stop]
        if name in _BY_ROW and isinstance(value, tuple):
            return tuple(self._of_rows(name, one, rows, everybody) for one in value)
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise self._unknown(f"takes {name!r}, a {type(value).__name__}{shape}")

    def run(self, hidden_states: Tensor, given: Mapping[str, Any], this: Pass, *, recompute: bool) -> Any:
        """What the layer returns in a pass.

        Args:
            hidden_states: the state.
            given: what it is called with beside that.
            this: what its adapters follow, also when the layer is called again.
            recompute: whether nothing inside is kept for the backward pass, which calls it again.
        """

        def run(hidden_states: Tensor) -> Any:
            with during(this):
                return self.forward(hidden_states, **given)

        return call_layer(run, hidden_states, recompute=recompute)

    def check_state(self, state_XLD: Tensor) -> None:
        """Check that what goes from layer to layer is one state for each position of each row.

        Raises:
            ConfigError: it is not.
        """
        if state_XLD.ndim != 3:
            raise self._unknown(f"takes a state of shape {tuple(state_XLD.shape)}, not [rows, columns, width]")

    def _unknown(self, what: str) -> ConfigError:
        return ConfigError(
            f"each {self.kind} of model.base {what}, which flare_ds cannot split between two texts",
            fix=f"use another base, or a method that reads one text at a time (lora, input_fusion); {OTHER_VERSION}",
        )


def _cut(name: str, value: Any, columns: slice) -> Any:
    """A named argument for some of its columns."""
    if columns == _ALL or name not in _BY_ROW:
        return value
    if isinstance(value, tuple):
        return tuple(_cut(name, one, columns) for one in value)
    if not isinstance(value, Tensor):
        return value
    if name == "attention_mask" and value.ndim == 4:  # what each column sees of each
        return value[..., columns, columns]
    return value[..., columns] if name in _COLUMNS_LAST else value[:, columns]


def cache_of(given: Mapping[str, Any]) -> Any:
    """The keys and values of earlier columns among a layer's named arguments; None: there are none."""
    return next((given[name] for name in CACHES if given.get(name) is not None), None)


def hidden_of(output: Any) -> Tensor:
    """A layer's hidden state: some models' layers return it first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, hidden_states: Tensor) -> Any:
    """The layer's output with another hidden state."""
    return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states


def call_layer(run: Callable[[Tensor], Any], hidden_states: Tensor, *, recompute: bool) -> Any:
    """Call a layer; with `recompute` nothing inside is kept for the backward pass, which calls it again."""
    if not (recompute and torch.is_grad_enabled()):
        return run(hidden_states)

    def run_and_mark(hidden_states: Tensor) -> Any:
        output = run(hidden_states)
        return with_hidden(output, _RecomputedFirst.apply(hidden_of(output)))

    return checkpoint(run_and_mark, hidden_states, use_reentrant=False)


class _RecomputedFirst(torch.autograd.Function):
    """Hands a layer's state on; backwards it is the layer's first step, and asks for what was not kept.

    So the layer is called again before any module inside begins its backward. Else the last one would have begun, and
    ZeRO-3 takes the weights that are gathered meanwhile for that module's: it would release the whole layer behind it.
    """

    @staticmethod
    def forward(ctx: Any, state_XLD: Tensor) -> Tensor:
        ctx.save_for_backward(state_XLD.new_empty(0))
        return state_XLD.detach()  # no view: the model may still write into it

    @staticmethod
    def backward(ctx: Any, gradient_XLD: Tensor) -> Tensor:
        (_,) = ctx.saved_tensors  # which recomputes the layer
        return gradient_XLD
