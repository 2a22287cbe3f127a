"""A pass: one call of a decoder layer for one stream, and what the adapters in there need to know of it.

Whoever calls a layer says so with `during`; each adapted linear inside asks `current`. Outside of any, adapters are
plain LoRA.

Legend: S sources, B rows, X = S·B, C columns so far, M source columns, D width of a module's input, R of a bottleneck.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from flare_ds.adapters.alignment import Alignment

ADAPTER = "default"
"""The name PEFT knows the adapter by, where there is one."""


@dataclass(frozen=True)
class Pass:
    """What goes with one call of a layer.

    Attributes:
        adapted: whether adapters are on; off, as for the sources, there is the frozen base alone.
        adapter: the name of the one that is on.
        inputs: takes what each fused module reads; None: nobody wants it.
        enough: whether all that is wanted of the layer is there, where nobody reads what comes of it: from then on no
            adapted linear computes anything; None: the layer is read.
        source_XMD: what each fused module fuses, all rows of one source before those of the next; empty: plain LoRA.
        alignment: how its positions meet the target's; None: nothing is fused.
        past_BCR: when decoding, T of the positions so far by module, added to; None: not kept.
        energy: while measuring, two sums by module, added to: see `adapted._energy`; None: not measured.
    """

    adapted: bool = True
    adapter: str = ADAPTER
    inputs: dict[LoraLayer, Tensor] | None = None
    enough: Callable[[], bool] | None = None
    source_XMD: Mapping[LoraLayer, Tensor] = field(default_factory=dict)
    alignment: Alignment | None = None
    past_BCR: dict[LoraLayer, Tensor] | None = None
    energy: dict[LoraLayer, Tensor] | None = None

    @property
    def ended(self) -> bool:
        """Whether all that is wanted of the layer is there."""
        return self.enough is not None and self.enough()


_PLAIN = Pass()
_current: ContextVar[Pass] = ContextVar("current pass", default=_PLAIN)


def current() -> Pass:
    """The pass under way."""
    return _current.get()


def alone(adapter: str) -> Pass:
    """The pass under way, with another adapter: of rows that meet no source."""
    return replace(current(), adapter=adapter)


@contextmanager
def during(this: Pass) -> Iterator[None]:
    """Have the adapters inside follow a pass; the backward pass, which may run in another thread, says it again."""
    before = _current.set(this)
    try:
        yield
    finally:
        _current.reset(before)
