"""A GPU for hosts that have none: its tensors hold numbers, and refuse to meet those of the host, as CUDA's do.

    virtual · virtual      as on any device          virtual · host   an error
    virtual · a number     allowed                   copies           allowed, both ways
    virtual[host ids]      allowed

A tensor of the virtual GPU says that it is on the device `meta`, and holds one that lies on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_COPIES = {"aten::_to_copy", "aten::copy_", "aten::set_", "aten::_has_compatible_shallow_copy_type"}
_INDEXING = {"aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_"}
_IN_PLACE = {"aten::copy_", "aten::index_put", "aten::index_put_"}
_VIEWS = {"aten::detach", "aten::alias"}


class _Virtual(Tensor):
    """A tensor of the virtual GPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "_Virtual":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
            requires_grad=False,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(operation, args, kwargs or {})


class _Watching(TorchDispatchMode):
    """Sees the operations that have no tensor of the virtual GPU among what they read, too."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on what the tensors hold."""
    name, device = operation._schema.name, kwargs.get("device")
    read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    virtual = [tensor for tensor in read if isinstance(tensor, _Virtual)]
    assert all(isinstance(tensor, _Virtual) or tensor.device != DEVICE for tensor in read), f"{name} of no numbers"
    _check(name, args, read, virtual)
    lands = bool(virtual) if device is None else torch.device(device).type == DEVICE.type
    if name in _IN_PLACE:
        lands = isinstance(args[0], _Virtual)
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    # What is changed in place stays the tensor that it was.
    was = {id(tensor.held): tensor for tensor in virtual if name not in _VIEWS}
    with _disable_current_modes():
        made = operation(*tree_map(_held, args), **tree_map(_held, kwargs))
    if not lands:
        return made
    return tree_map(lambda one: was[id(one)] if id(one) in was else _landed(one), made)


def _check(name: str, args: Any, read: list[Tensor], virtual: list[_Virtual]) -> None:
    host = [tensor for tensor in read if not isinstance(tensor, _Virtual) and tensor.ndim > 0]
    may_meet = name in _COPIES or (name in _INDEXING and isinstance(args[0], _Virtual))
    if virtual and host and not may_meet:
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (virtual, host)]
        raise RuntimeError(f"{name} of {shapes[0]} on the GPU and {shapes[1]} on the host")


def _landed(one: Any) -> Any:
    return _Virtual(one) if isinstance(one, Tensor) else one


def _held(one: Any) -> Any:
    return one.held if isinstance(one, _Virtual) else one


@contextmanager
def virtual_gpu() -> Iterator[None]:
    """Inside, `torch.device("meta")` is a GPU."""
    make, to_list, get = torch.tensor, Tensor.tolist, Tensor.__getitem__

    def tensor(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        made = make(*args, **kwargs)
        return made if device is None else made.to(device)

    with pytest.MonkeyPatch.context() as patch, _Watching():
        # These go past the operations that are seen above.
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(Tensor, "tolist", lambda self: to_list(_held(self)))
        patch.setattr(Tensor, "__getitem__", lambda self, at: get(self, _with_ids(at)))
        yield


def _with_ids(at: Any) -> Any:
    """An index with tensors for the lists in it."""
    places = at if isinstance(at, tuple) else (at,)
    return tuple(torch.tensor(place) if isinstance(place, list) else place for place in places)


def moved(model: nn.Module) -> None:
    """Put a model on the virtual GPU; a parameter that two modules share stays one."""
    there: dict[Tensor, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in there:
                    held = parameter.detach().clone()
                    there[parameter] = nn.Parameter(_Virtual(held), requires_grad=parameter.requires_grad)
                module._parameters[name] = there[parameter]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else _Virtual(buffer.detach().clone())
