"""What all-gathers bring to this rank, counted where DeepSpeed hands them to torch.

Under ZeRO-3 every forward and backward gathers the base's weights layer by layer; over a slow network that is where the
time goes. Only `flare_ds.runtime.sharded` imports this module.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from deepspeed.comm.torch import TorchBackend
from torch import Tensor

_COUNTED = ("all_gather_into_tensor", "all_gather")


@cache
def gathers() -> Counter[str]:
    """Counts that go on from the first call in a process.

    Returns:
        `gathers`: all-gathers that were begun; `gathered_elements` and `gathered_bytes`: of what they put together on
        this rank, its own share among it. They grow; nobody sets them back.
    """
    counts: Counter[str] = Counter(gathers=0, gathered_elements=0, gathered_bytes=0)
    for name in _COUNTED:
        setattr(TorchBackend, name, _counted(getattr(TorchBackend, name), counts))
    return counts


def _counted(gather: Callable[..., Any], counts: Counter[str]) -> Callable[..., Any]:
    """The same method; DeepSpeed gives it what is to be filled first, or as the first keyword."""

    @wraps(gather)
    def counted(backend: TorchBackend, *args: Any, **kwargs: Any) -> Any:
        filled: Tensor | list[Tensor] = args[0] if args else next(iter(kwargs.values()))
        parts = filled if isinstance(filled, list) else [filled]
        counts["gathers"] += 1
        counts["gathered_elements"] += sum(part.numel() for part in parts)
        counts["gathered_bytes"] += sum(part.nbytes for part in parts)
        return gather(backend, *args, **kwargs)

    return counted
