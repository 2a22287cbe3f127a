"""The sources' way through the base: in each decoder layer before the target's rows, adapters off, no gradient.

    layer i     sources   s' = layer(s)          once, whoever reads them
                   |  what is left: s, s', what fused modules read, keys and values
                target    t' = layer(t)          in one pass for each adapter: `flare_ds.models.streams.SideBySide`

Legend: X source rows, M their columns, D width, H heads, K width of a head.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from flare_ds.adapters.passes import Pass, during
from flare_ds.models.layer_calls import CACHES, SHARED, LayerCall, hidden_of


@dataclass
class Beside:
    """The source rows of one forward: where they stand, and how far they came.

    Attributes:
        rows: how many; they are the first of the batch.
        columns: those that the sources' rows fill, and the target's: all that a layer is to read.
        stores: what their layers write into, by the names that layers know it by.
        keep: whether the last layer also returns them, before the target's.
        state_XMD: they behind the layer that ran last; None: none has run.
    """

    rows: int
    columns: tuple[slice, slice]
    stores: Mapping[str, Any] = field(default_factory=lambda: {SHARED: {}})
    keep: bool = False
    state_XMD: Tensor | None = None


@dataclass(frozen=True)
class Wanted:
    """What is read of a layer's pass over the sources.

    Attributes:
        output: what comes out of it.
        inputs: what fused modules read in it.
        keys: the keys and values of its attention.
    """

    output: bool = False
    inputs: bool = False
    keys: bool = False

    def __or__(self, other: "Wanted") -> "Wanted":
        return Wanted(self.output or other.output, self.inputs or other.inputs, self.keys or other.keys)


@dataclass(frozen=True)
class Left:
    """What one layer's pass over the sources left.

    Attributes:
        before_XMD: the sources before it.
        after_XMD: behind it.
        inputs: what each fused module read.
        keys: and values, of its attention.
        columns: which of the columns the reader's own batch has.
        rows_X: which of the rows, in its own order; None: all.
    """

    before_XMD: Tensor
    after_XMD: Tensor
    inputs: Mapping[LoraLayer, Tensor]
    keys: "ReadKeys"
    columns: slice = field(default_factory=lambda: slice(None))
    rows_X: Tensor | None = None

    def for_rows(self, rows_X: Tensor | None, columns: slice) -> "Left":
        """The same for who reads some of the rows and columns."""
        return replace(self, rows_X=rows_X, columns=columns)

    def own(self, all_XMD: Tensor) -> Tensor:
        """The reader's rows and columns."""
        own_XMD = all_XMD[:, self.columns]
        return own_XMD if self.rows_X is None else own_XMD.index_select(0, self.rows_X)


class ReadKeys:
    """Takes, in the place of a cache, the keys and values of one layer's pass over the sources."""

    keys_XHMK: Tensor | None = None
    values_XHMK: Tensor | None = None

    def update(self, keys_XHMK: Tensor, values_XHMK: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep and return them."""
        self.keys_XHMK, self.values_XHMK = keys_XHMK, values_XHMK
        return keys_XHMK, values_XHMK


class SourcePass:
    """Takes sources one decoder layer on."""

    def __init__(self, layer: nn.Module, call: LayerCall) -> None:
        self.call = call
        self.fusing = sum(hasattr(module, "lora_fusion") for module in layer.modules())

    @torch.no_grad()
    def __call__(self, beside: Beside, given: Mapping[str, Any], wanted: Wanted) -> Left:
        """What is left; where nothing is wanted, the layer is not called."""
        before_XMD, inputs, keys = beside.state_XMD, dict[LoraLayer, Tensor](), ReadKeys()
        assert before_XMD is not None

        def enough() -> bool:
            has_inputs = not wanted.inputs or len(inputs) == self.fusing
            return has_inputs and (not wanted.keys or keys.keys_XHMK is not None)

        if wanted != Wanted():
            takes = dict(beside.stores) | dict.fromkeys(CACHES, keys) if wanted.keys else beside.stores
            given = dict(given) | {name: store for name, store in takes.items() if name in given}
            takes_inputs = inputs if wanted.inputs else None
            with during(Pass(adapted=False, inputs=takes_inputs, enough=None if wanted.output else enough)):
                beside.state_XMD = hidden_of(self.call.forward(before_XMD, **given))
        return Left(before_XMD, beside.state_XMD, inputs, keys)  # type: ignore[arg-type]
