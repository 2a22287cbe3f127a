"""The engine in which every rank holds the whole base: plain PyTorch, for bases that fit.

Only the adapter's gradients cross between ranks, once a step (torch's DistributedDataParallel). A process alone joins
no group, and DeepSpeed is not imported.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from flare_ds.models.joint import JointModel
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.runtime.engine import MOMENTS, Engine, Kind
from flare_ds.runtime.optimizer import CellsAdamW, Learner
from flare_ds.runtime.process_group import rank, world_size


class WholeEngine(Engine):
    """Trains a whole model, which lies on this rank's device, with the same adapters on every rank."""

    name = "whole"

    def __init__(self, model: TwoStreamModel | JointModel, learners: Sequence[Learner]) -> None:
        super().__init__(model, model, learners, CellsAdamW(learners))
        # A matrix that no row of a step reached has moments and a decay like the others, as under DeepSpeed.
        for learner in learners:
            for parameter in learner.parameters.values():
                parameter.grad = torch.zeros_like(parameter)
        self.averaged = _averaged(model) if world_size() > 1 else None

    def tensors(self, kind: Kind, cell: int = 0) -> dict[str, Tensor]:
        """See `Engine.tensors`."""
        if rank():
            return {}
        parameters = self.learners[cell].parameters
        return {name: self._held(parameter, kind).to("cpu", copy=True) for name, parameter in parameters.items()}

    def restore(self, moments: Mapping[Kind, Mapping[str, Tensor]], updates: int, cell: int = 0) -> None:
        """See `Engine.restore`."""
        for name, parameter in self.learners[cell].parameters.items():
            own = {kind: moments[kind][name].to(parameter.device, copy=True) for kind in MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.tensor(updates, dtype=torch.float32), **own}

    @property
    def _forwards(self) -> Callable[..., Tensor]:
        return self.averaged or self.model

    def _micro_step(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last or self.averaged is None else self.averaged.no_sync()

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _norms(self, cells: list[int]) -> list[float]:
        """See `Engine`; waits for the device once."""
        of_cells = [[p.grad for p in self.learners[cell].parameters.values() if p.grad is not None] for cell in cells]
        return torch.stack([get_total_norm(gradients) for gradients in of_cells]).tolist()

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)

    def _held(self, parameter: nn.Parameter, kind: Kind) -> Tensor:
        if kind == "adapter":
            return parameter.detach()
        return self.optimizer.state[parameter].get(kind, torch.zeros_like(parameter, requires_grad=False))


def _averaged(model: TwoStreamModel | JointModel) -> DistributedDataParallel:
    """The model with gradients that are averaged over the ranks.

    A row may leave matrices out (an expert that no token chose), and nothing frozen has to be sent.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 renames broadcast_buffers
        return DistributedDataParallel(
            model,
            broadcast_buffers=False,
            init_sync=False,
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )
