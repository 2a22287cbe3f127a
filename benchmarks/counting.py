"""Counting what a piece of work does, exactly: collectives, elements gathered, host waits, bytes kept for backward.

Everything is seen by torch's dispatcher, whoever calls it: DeepSpeed, this project, or torch itself. On a GPU a host
wait is where Python stops until the device has caught up; counted here are the reads of a tensor's value (`.item()`,
`float()`, `nonzero`) and DeepSpeed's explicit synchronisations, which on a CPU are free.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flare_ds.models.two_stream import TwoStreamModel

READS = ("aten::_local_scalar_dense", "aten::nonzero")
COUNTED = ("collectives", "gathered", "objects", "waits")


class StepCounter(TorchDispatchMode):
    """Counts, while it is watched over a training, what some of its steps do; one micro-batch is a step.

    A step lasts from its forward to the next of any kind: forward, backward, optimizer, and what the ranks tell one
    another.

    Args:
        wanted: numbers of steps, from 1; the others run uncounted, and faster.

    Attributes:
        steps: by number, `collectives`, `gathered` (elements of all-gathers, but for those of bytes, which carry
            pickled objects), `objects` (collectives of bytes) and `waits`.
    """

    def __init__(self, wanted: Sequence[int]) -> None:
        super().__init__()
        self.steps: dict[int, dict[str, int]] = {}
        self._wanted, self._number, self._counting = wanted, 0, False
        self._now: Counter[str] = Counter()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The training."""
        hook = register_module_forward_pre_hook(self._at_forward)
        synchronize = get_accelerator().synchronize

        def counted(*args: Any, **kwargs: Any) -> None:
            self._now["waits"] += 1
            synchronize(*args, **kwargs)

        get_accelerator().synchronize = counted
        try:
            yield
        finally:
            self._end()
            get_accelerator().synchronize = synchronize
            hook.remove()

    def _at_forward(self, module: torch.nn.Module, inputs: Any) -> None:
        if not isinstance(module, TwoStreamModel):
            return
        self._end()
        self._number += module.training
        if module.training and self._number in self._wanted:
            self._now.clear()
            self._counting = True
            self.__enter__()

    def _end(self) -> None:
        if self._counting:
            self.__exit__(None, None, None)
            self._counting = False
            self.steps[self._number] = {name: self._now[name] for name in COUNTED}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        if name in READS:
            self._now["waits"] += 1
        elif name.startswith("c10d::") and name != "c10d::barrier":
            self._collective(name, args)
        return func(*args, **(kwargs or {}))

    def _collective(self, name: str, args: Sequence[Any]) -> None:
        outputs = [leaf for leaf in tree_leaves(args[0]) if isinstance(leaf, Tensor)]
        self._now["collectives"] += 1
        if any(output.dtype == torch.uint8 for output in outputs):
            self._now["objects"] += 1
        elif "allgather" in name:
            self._now["gathered"] += sum(output.numel() for output in outputs)


@contextmanager
def saved_bytes(parameters: Iterable[Tensor]) -> Iterator[dict[str, int]]:
    """Measure a forward: `bytes` kept for the backward, each storage once, but for parameters; those in float32."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, tuple[int, torch.dtype]] = {}
    found: dict[str, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor.dtype
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found
    found["bytes"] = sum(size for size, _ in kept.values())
    found["float32_bytes"] = sum(size for size, dtype in kept.values() if dtype is torch.float32)
