"""Nothing that a step or a question computes on a GPU is left on the host; and it is what the host computes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from flare_ds.batches.collate import Batch
from flare_ds.batches.joined import JointBatch
from flare_ds.config import Config
from flare_ds.data.label_trie import LabelTrie
from flare_ds.evaluation.generate import generate
from flare_ds.evaluation.ranked import label_scores
from flare_ds.models.joint import JointModel
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.runtime.engine import MOMENTS, RunningModel
from flare_ds.runtime.filled import learners_of
from flare_ds.runtime.whole import WholeEngine
from tests.by_hand import LABELS
from tests.models.test_joint import CELLS, HEADS, cells, laid_out, together
from tests.virtual_gpu import DEVICE, moved, virtual_gpu

WAYS = [("labels", True), ("vocabulary", False)]


def test_what_is_left_on_the_host_is_noticed() -> None:
    with virtual_gpu():
        there, here = torch.ones(2, 3).to(DEVICE), torch.ones(2, 3)
        assert (there + there).tolist() == [[2.0] * 3] * 2 and (there * 2).device == DEVICE
        assert there[torch.tensor([1])].shape == (1, 3) and torch.tensor([5], device=DEVICE).tolist() == [5]
        for wrong in (lambda: there + here, lambda: here[there.long()], lambda: nn.functional.linear(there, here)):
            with pytest.raises(RuntimeError, match="on the GPU and"):
                wrong()


def stepped(model: TwoStreamModel | JointModel, configs: list[Config], batch: Batch | JointBatch) -> list[float]:
    """Losses of a micro-batch and norms of the gradients of a step, whose state is then read as for saving."""
    engine = WholeEngine(model, learners_of(model, configs))
    engine.root.train()
    losses = engine.accumulate(batch.to(engine.device), targets=[3] * len(configs), last=True)
    norms = engine.step(dict.fromkeys(range(len(configs)), 1e-2))
    for number in range(len(configs)):
        moments = {kind: engine.tensors(kind, number) for kind in MOMENTS}
        assert all(tensor.device.type == "cpu" for of_kind in moments.values() for tensor in of_kind.values())
        engine.restore(moments, 1, number)
    engine.step(dict.fromkeys(range(len(configs)), 1e-2))
    assert len({parameter.device for parameter in model.parameters()}) == 1
    return [*losses.tolist(), *(norm for norm in norms.values() if norm is not None)]


def on_both(make: Callable[[], tuple[nn.Module, Any]], ask: Callable[[Any, Any], Any]) -> None:
    """What a model says on the virtual GPU is what one says on the host."""
    here, batch = make()
    expected = ask(here, batch)
    there, batch = make()
    moved(there)
    with virtual_gpu():
        assert ask(there, batch) == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("objective", "checkpointing"), WAYS)
def test_a_step(name: str, objective: str, checkpointing: bool) -> None:
    def make() -> tuple[nn.Module, Any]:
        ((config, batch, model),) = cells("llama", objective, checkpointing, made={name: CELLS[name]})
        return model, (config, batch)

    on_both(make, lambda model, asked: stepped(model, [asked[0]], asked[1]))


@pytest.mark.parametrize("made", [CELLS, HEADS], ids=["cells", "heads"])
@pytest.mark.parametrize(("objective", "checkpointing"), WAYS)
def test_a_step_of_cells_that_train_together(made: dict[str, Any], objective: str, checkpointing: bool) -> None:
    alone = cells("llama", objective, checkpointing, made=made)
    configs = [config for config, _, _ in alone]
    on_both(lambda: (together("llama", alone), laid_out(alone)), lambda model, batch: stepped(model, configs, batch))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("objective", ["labels", "vocabulary"])
def test_a_question(name: str, objective: str) -> None:
    ((config, _, _),) = cells("llama", objective, False, made={name: CELLS[name]})
    writing = config.generate.model_copy(update={"max_new_tokens": 4, "temperature": 0.7, "top_k": 5, "top_p": 0.9})
    config = config.model_copy(update={"generate": writing})

    def make() -> tuple[nn.Module, Any]:
        ((_, batch, model),) = cells("llama", objective, False, made={name: CELLS[name]})
        return model.eval(), batch

    def ask(model: TwoStreamModel, batch: Batch) -> list[float]:
        running = RunningModel(model, model)
        with torch.no_grad(), model.streams.measuring() as shares:
            model(batch.to(running.device))
        said = [number for sums in shares.values() for number in sums.tolist()]
        if objective == "labels":
            trie = LabelTrie([[token] for token in LABELS.values()])
            return [*said, *label_scores(running, batch, trie, config).flatten().tolist()]
        for written in generate(running, batch, config, eos=[1], rows=range(len(batch.weights_B))):
            said += written.tokens
        return said

    on_both(make, ask)
