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


class StepCounter(TorchDispatchMode):
    """Counts while it is entered; `steps` holds what lay between a training forward and the next forward of any kind.

    With one micro-batch a step that is a step: forward, backward, optimizer, and what the ranks tell one another.

    Attributes:
        steps: counts of each step in order, as `collectives`, `gathered` (elements of all-gathers, but for those of
            bytes, which carry pickled objects), `objects` (collectives of bytes) and `waits`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, int]] = []
        self._now: Counter[str] = Counter()
        self._training = False

    def __enter__(self) -> "StepCounter":
        self._hook = register_module_forward_pre_hook(self._at_forward)
        self._synchronize = get_accelerator().synchronize
        get_accelerator().synchronize = self._counted_synchronize
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        get_accelerator().synchronize = self._synchronize
        self._hook.remove()
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        if name in READS:
            self._now["waits"] += 1
        elif name.startswith("c10d::") and name != "c10d::barrier":
            self._collective(name, [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)], args)
        return func(*args, **(kwargs or {}))

    def _collective(self, name: str, tensors: list[Tensor], args: Sequence[Any]) -> None:
        self._now["collectives"] += 1
        if tensors[0].dtype == torch.uint8:
            self._now["objects"] += 1
        elif "allgather" in name:
            self._now["gathered"] += sum(leaf.numel() for leaf in tree_leaves(args[0]))

    def _counted_synchronize(self, *args: Any, **kwargs: Any) -> None:
        self._now["waits"] += 1
        self._synchronize(*args, **kwargs)

    def _at_forward(self, module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, TwoStreamModel):
            if self._training:
                self.steps.append({name: self._now[name] for name in ("collectives", "gathered", "objects", "waits")})
            self._now.clear()
            self._training = module.training


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
