"""A two-stream model that is ready to run, and what of it trains: the same for who asks, whoever holds the base.

    RunningModel           answers: whole in this process, or in the shards of all ranks
    Engine                 also learns; of these there are two
      WholeEngine            every rank holds the base; the gradients are averaged    `flare_ds.runtime.whole`
      ShardedEngine          the ranks share the base (DeepSpeed's ZeRO-3)            `flare_ds.runtime.sharded`

Which one is opened, and when, says `flare_ds.runtime.opening`.
"""

import gc
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from flare_ds.adapters.inject import check_adapter
from flare_ds.batches.collate import Batch
from flare_ds.batches.joined import JointBatch
from flare_ds.config import Config
from flare_ds.models.joint import JointModel
from flare_ds.models.loss import share_of_mean
from flare_ds.models.mixup import check_mixup
from flare_ds.models.partitioned import full_numel
from flare_ds.models.probe import check_layers, check_looks_back
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.runtime.free_memory import give_back
from flare_ds.runtime.letting_go import let_go_of_shared
from flare_ds.runtime.optimizer import CellsAdamW, Learner
from flare_ds.runtime.process_group import device, world_size

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

AdapterSource = Callable[[dict[str, nn.Parameter]], dict[str, Tensor]]
Kind = Literal["adapter", "exp_avg", "exp_avg_sq"]
MOMENTS: tuple[Kind, ...] = ("exp_avg", "exp_avg_sq")
KINDS: tuple[Kind, ...] = ("adapter", *MOMENTS)
"""What a trained matrix and its optimizer hold, as AdamW names it."""
_CARRIED = {"step", *MOMENTS}
"""What of an optimizer's state a resume brings back."""
OfSources = dict[tuple[Path, str, int], list[list[float]]]
"""Label scores that the frozen base gave the sources of rows, by cache, split and number of rows."""


@dataclass
class RunningModel:
    """A model that is ready to run.

    Attributes:
        root: what forwards go through: DeepSpeed's engine, or the model itself where every rank holds it whole.
        model: the two-stream model inside it.
        zero_init: keeps transformers loading under zero.Init; must live as long as the model. None: it is whole.
        of_sources: what the frozen base was asked before; cells over one base share it.
    """

    root: "DeepSpeedEngine | TwoStreamModel | JointModel | AskedCell"
    model: TwoStreamModel
    zero_init: HfDeepSpeedConfig | None = None
    of_sources: OfSources = field(default_factory=dict)

    @property
    def sharded(self) -> bool:
        """Whether a forward is a collective: then all ranks must run equally many."""
        return self.zero_init is not None

    @property
    def device(self) -> torch.device:
        """Where a batch has to be."""
        return device() if self.sharded else self.model.base.device

    @property
    def shared_root(self) -> "DeepSpeedEngine | TwoStreamModel | JointModel":
        """The root of all cells of the model."""
        return self.root.root if isinstance(self.root, AskedCell) else self.root


@dataclass(frozen=True)
class AskedCell:
    """The root of one cell of a joint model, by its number, in that of all cells."""

    root: "DeepSpeedEngine | JointModel"
    cell: int

    def __call__(self, batch: Batch, **how: Any) -> Tensor:
        """See `TwoStreamModel.forward`."""
        return self.root(batch, cell=self.cell, **how)

    def eval(self) -> None:
        """Draw no dropout."""
        self.root.eval()


class Engine(ABC):
    """A running model that learns, of one cell or several; every method is called by all ranks, equally often.

    Args:
        root: see `RunningModel`; batches of a joint model are joint.
        learners: what each cell trains of it, in the order of their numbers.

    Attributes:
        name: in the records.
    """

    name: ClassVar[str]

    def __init__(
        self,
        root: "DeepSpeedEngine | TwoStreamModel | JointModel",
        model: TwoStreamModel | JointModel,
        learners: Sequence[Learner],
        optimizer: CellsAdamW,
        zero_init: HfDeepSpeedConfig | None = None,
    ) -> None:
        self.root, self.model, self.zero_init = root, model, zero_init
        self.of_sources: OfSources = {}  # one for all cells: the frozen base is the same
        self.learners, self.optimizer = tuple(learners), optimizer

    @property
    def device(self) -> torch.device:
        """Where a batch has to be."""
        return self.running(0).device

    def running(self, cell: int = 0) -> RunningModel:
        """A cell's model, to be asked."""
        if isinstance(self.model, TwoStreamModel):
            return RunningModel(self.root, self.model, self.zero_init, self.of_sources)
        return RunningModel(AskedCell(self.root, cell), self.model.cells[cell], self.zero_init, self.of_sources)

    def accumulate(
        self,
        batch: Batch | JointBatch,
        *,
        targets: Sequence[int],
        last: bool,
        forwarded: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Forward and backward of a micro-batch; waits for nothing.

        Args:
            batch: this rank's rows, on its device.
            targets: of each cell in the batch, what the loss of its whole step, over all ranks and micro-batches, is
                the mean over.
            last: whether it is the step's last micro-batch, behind which the ranks' gradients are put together.
            forwarded: called between the two.

        Returns:
            The losses summed over each cell's answers, on the device: [C].
        """
        with self._micro_step(last):
            losses: Tensor = self._forwards(batch, with_loss=True).view(-1)
            forwarded()
            self._backward(share_of_mean(losses, step_targets=targets, world_size=world_size()))
        return losses.detach()

    def step(self, rates: Mapping[int, float]) -> dict[int, float | None]:
        """Clip what cells accumulated, each by its own global norm, and update their adapters.

        Args:
            rates: the schedule's, of each cell that takes a step.

        Returns:
            Their norms before clipping; None: it was not finite, so the cell's step was applied on no rank.
        """
        found = [norm if is_bounded(norm) else math.inf for norm in self._norms(list(rates))]
        norms = dict(zip(rates, found, strict=True))
        self.optimizer.prepare(self.learners, rates, norms)
        self._update()
        assert all(state.keys() <= _CARRIED for state in self.optimizer.state.values()), "a resume would lose more"
        return {cell: norm if math.isfinite(norm) else None for cell, norm in norms.items()}

    @abstractmethod
    def tensors(self, kind: Kind, cell: int = 0) -> dict[str, Tensor]:
        """Whole fp32 matrices by parameter name, in the host's memory of rank 0; on other ranks nothing."""

    @abstractmethod
    def restore(self, moments: Mapping[Kind, Mapping[str, Tensor]], updates: int, cell: int = 0) -> None:
        """Give the optimizer the moments, by kind and parameter name, that it had after so many updates of a cell."""

    def gathered(self) -> dict[str, int]:
        """How often, and how many bytes, this rank gathered so far; nothing where it holds the base."""
        return {}

    @property
    def _forwards(self) -> Callable[..., Tensor]:
        """What a forward that learns goes through."""
        return self.root

    @abstractmethod
    def _micro_step(self, last: bool) -> AbstractContextManager[None]:
        """Within which a micro-batch of a step goes forward and backward."""

    @abstractmethod
    def _backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those of the step."""

    @abstractmethod
    def _norms(self, cells: list[int]) -> list[float]:
        """The global norms of the cells' gradients."""

    @abstractmethod
    def _update(self) -> None:
        """Let the optimizer take a step, and forget the gradients."""


_LARGEST_NORM = 1e18


def is_bounded(norm: float) -> bool:
    """Whether a step is applied: DeepSpeed adds the squares of all cells up in float32, where none may overflow."""
    return norm < _LARGEST_NORM


def check_model(config: Config, shape: PreTrainedModel) -> None:
    """Refuse what cannot be built on a base, before that is loaded: its shape tells."""
    check_looks_back(shape)
    if config.recipe.trains:
        check_adapter(shape, config)
    if config.recipe.fuses == "mixup":
        check_mixup(shape, config.mixup)
    check_layers(shape, config)


def make_room() -> None:
    """Let a model that nobody holds any more go, so that another can be opened, sharded or whole."""
    gc.collect()  # an engine and its hooks hold one another
    let_go_of_shared()
    unset_hf_deepspeed_config()
    let_go()


def let_go() -> None:
    """Let the memory of models go that nobody holds any more but themselves."""
    gc.collect()  # an engine and its hooks, or layers and what stands in for their forwards, hold one another
    torch.cuda.empty_cache()  # does nothing where no GPU was used
    give_back()


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with requires_grad, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count_trainable(model: nn.Module) -> int:
    """Trained elements, whole parameters counted however they are stored."""
    return sum(full_numel(parameter) for parameter in trainable_parameters(model).values())
