"""Letting go of sharded models that nobody holds any more: DeepSpeed itself would hold them until the process ends.

    its hooks on the gradients             hold the optimizer, and that the model; `destroy` of the engine removes them
    a stack of the modules in a forward    begins with each engine's model, which nothing takes off it
    a cache of a method's answers          is kept by module, of all engines

Whether somebody holds a model is told by its `zero_init`, which whoever may run it holds as well, and DeepSpeed does
not. Another DeepSpeed than the pinned one may lack one of these, and then has nothing to be taken away there.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ref

from transformers.integrations import HfDeepSpeedConfig

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_opened: list[tuple[ref[HfDeepSpeedConfig], "DeepSpeedEngine"]] = []


def remember(root: "DeepSpeedEngine", zero_init: HfDeepSpeedConfig) -> None:
    """Let `let_go_of_shared` know of a model that was opened; see `flare_ds.runtime.engine.RunningModel`."""
    _opened.append((ref(zero_init), root))


def let_go_of_shared() -> None:
    """Take what DeepSpeed keeps of models that nobody holds any more; the garbage collector frees them then."""
    gone = [root for held, root in _opened if held() is None]
    _opened[:] = [(held, root) for held, root in _opened if held() is not None]
    for root in gone:
        _take_off_the_stack(root)
    if gone:
        _forget_answers()
    for root in gone:
        root.destroy()


def _take_off_the_stack(root: "DeepSpeedEngine") -> None:
    """A forward that ended in an error has left modules there, too."""
    from deepspeed.runtime.zero import parameter_offload

    own = {*root.module.modules()}
    stack: list[Any] = getattr(parameter_offload, "FWD_MODULE_STACK", [])
    stack[:] = [module for module in stack if module not in own]


def _forget_answers() -> None:
    """They are worked out anew for the models that are held."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    for method in vars(PartitionedParameterCoordinator).values():
        for cached in (method, *_wrapped_by(method)):
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()


def _wrapped_by(method: Any) -> list[Callable[..., Any]]:
    """What DeepSpeed's decorators have put their own functions around; those do not tell it."""
    cells = getattr(method, "__closure__", None) or ()
    return [cell.cell_contents for cell in cells if callable(cell.cell_contents)]
