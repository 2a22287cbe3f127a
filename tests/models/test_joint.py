"""Several cells in one forward against each of them alone, behind which the slow oracle stands: losses, gradients."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from flare_ds.adapters.inject import inject_adapter
from flare_ds.batches.collate import Batch
from flare_ds.batches.joined import JointBatch, join
from flare_ds.config import Config
from flare_ds.models.head import use_head
from flare_ds.models.joint import JointModel
from flare_ds.models.joint_head import use_cell_heads
from flare_ds.models.two_stream import TwoStreamModel
from tests.by_hand import LABELS, MT_WIDTH, build, make_batch, make_config, make_rows
from tests.models.test_mixup import MIXUP
from tests.models.test_prefix import stored_batch
from tests.oracle import Row
from tests.small_models import small_model

ROWS = make_rows(1)
OTHER = make_rows(1, [([(9, 0)], (4, 2)), ([(2, 1)], (7, 3))], seed=4)
CELLS = {
    "lora": ({"method": "lora"}, [0, 1, 2, 3]),
    "output": ({"pairing": "output"}, [3, 0, 2]),
    "input": ({"pairing": "input", "source_norm": False, "r": 2, "align": "stretch"}, [4, 1]),
    "module": ({"pairing": "module", "fused_modules": ["o_proj", "down_proj"], "fusion": "mul_relu"}, [0, 1, 2, 3]),
    "across": ({"fusion": "cross_attention", "target_modules": ["q_proj", "v_proj"], "source_down": "own"}, [2, 1]),
    "full": ({"span": "full"}, [0, 1, 2]),
    "prefix": ({"method": "source_prefix"}, [0, 1, 5, 6]),
    "other": ({"method": "flare"}, [5]),
    "stored": ({"method": "source_prefix", "provider": "cached"}, [6, 0, 1]),
    "mixed": ({"method": "x_mixup", "mixup": MIXUP | {"layer": 1}}, [0, 1, 5]),
    "mixed_late": ({"method": "x_mixup", "mixup": MIXUP | {"layer": 2}, "r": 2}, [2, 4]),
    "encoder": ({"method": "flare_mt"}, [1, 5, 2]),
}
"""Settings of each cell, and its rows, among those of all."""
OF_THREE = make_rows(3)
SEVERAL = {
    "prefix": ({"method": "source_prefix", "sources": 3}, [0, 1, 2, 3]),
    "two": ({"method": "source_prefix", "sources": 2, "r": 2}, [3, 1, 4]),
    "first": ({"method": "source_prefix"}, [0, 1, 2]),
    "fused": ({"sources": 3, "pairing": "output"}, [0, 1, 2]),
    "lora": ({"method": "lora"}, [2, 0]),
}
"""The same of cells that read up to three sources, of which prefixes alone are lined up."""
HEADS = {name: (settings | {"train_head": True}, rows) for name, (settings, rows) in list(CELLS.items())[:7]}
"""The same of cells that train a head each."""


def cells(
    model: str, objective: str, checkpointing: bool, *, made: dict = CELLS, rows: list[Row] = ROWS + OTHER
) -> list[tuple[Config, Batch, TwoStreamModel]]:
    """Each cell alone."""
    found = []
    for settings, places in made.values():
        config = make_config(objective=objective, checkpointing=checkpointing, **settings)
        own, of_cell = build(model, config), [rows[place] for place in places]
        if config.source.provider == "cached":
            batch = stored_batch(own, of_cell, config)
        elif config.reads_mt_encoder:
            batch = encoded_batch(of_cell, objective)
        else:
            batch = make_batch(of_cell, config, source_targets=config.recipe.adapts_source)
        found.append((config, batch, own))
    return found


def encoded_batch(rows: list[Row], objective: str) -> Batch:
    """With states of an MT encoder, as if it had read the rows; of the first there are none."""
    batch = make_batch(rows, make_config(method="lora", objective=objective))
    lengths_B = batch.target_lengths_B.clone()
    lengths_B[0] = 0
    shape = len(lengths_B), int(lengths_B.max()), 1, MT_WIDTH
    states_BMKD = torch.randn(shape, generator=torch.Generator().manual_seed(8))
    return replace(batch, source_lengths_SB=lengths_B[None], stored_BMKD=states_BMKD)


def laid_out(alone: list[tuple[Config, Batch, TwoStreamModel]], chosen: Sequence[int] | None = None) -> JointBatch:
    """The batches of some cells, or of all, as one."""
    numbers = chosen or range(len(alone))
    return join({n: alone[n][1] for n in numbers}, {n: alone[n][0].recipe for n in numbers})


def together(model: str, alone: list[tuple[Config, Batch, TwoStreamModel]]) -> JointModel:
    """All over one base, with the values of the adapters alone."""
    base, _ = small_model(model, layers=2)
    peft_model = base
    names = [f"cell{number}" for number in range(len(alone))]
    for name, (config, _, _) in zip(names, alone, strict=True):
        peft_model = inject_adapter(peft_model, config.adapter, sources=config.sources, seed=7, name=name)
    objective = alone[0][0].train.objective
    words = [[token] for token in LABELS.values()] if objective == "labels" else None
    use_head(base, label_tokens=words, trained=alone[0][0].adapter.train_head)
    if alone[0][0].adapter.train_head:
        use_cell_heads(base, names)
    parts = []
    for name, (config, _, own) in zip(names, alone, strict=True):
        projection = nn.Linear(MT_WIDTH, base.config.hidden_size) if config.reads_mt_encoder else None
        parts.append(part := TwoStreamModel(peft_model, config, projection, among=name))
        values = own.trained()
        assert [*part.trained()] == [*values]
        for name, parameter in part.trained().items():
            parameter.data = values[name].data.clone()
    return JointModel(parts).train()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("objective", ["labels", "vocabulary"])
@pytest.mark.parametrize("model", ["llama", "gemma2", "gemma3"])
def test_each_cell_has_its_own_loss_and_gradients(model: str, objective: str, checkpointing: bool) -> None:
    check_as_alone(model, cells(model, objective, checkpointing))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model", ["llama", "gemma3"])
def test_sources_that_are_lined_up_stand_at_their_own_positions(model: str, checkpointing: bool) -> None:
    alone = cells(model, "vocabulary", checkpointing, made=SEVERAL, rows=OF_THREE)
    check_as_alone(model, alone)
    assert laid_out(alone).sources > laid_out(alone[3:]).sources, "a text at two positions is two sources"


@pytest.mark.parametrize("objective", ["labels", "vocabulary"])
@pytest.mark.parametrize("model", ["llama", "gemma2"])
def test_each_cell_trains_its_own_head(model: str, objective: str) -> None:
    alone = cells(model, objective, False, made=HEADS)
    for number, (_, _, own) in enumerate(alone):
        head = next(parameter for name, parameter in own.trained().items() if name.endswith("lm_head.weight"))
        head.data *= 1 + number / 10
    check_as_alone(model, alone)
    joint = together(model, alone).eval()
    with torch.no_grad():
        for number, (_, batch, own) in enumerate(alone):
            assert torch.equal(joint(batch, cell=number), own.eval()(batch))


def check_as_alone(model: str, alone: list[tuple[Config, Batch, TwoStreamModel]]) -> None:
    joint = together(model, alone)
    batch = laid_out(alone)
    losses = joint(batch, with_loss=True)
    losses.sum().backward()
    for (_, own_batch, own), part, loss in zip(alone, joint.cells, losses, strict=True):
        wanted = own(own_batch, with_loss=True)
        wanted.backward()
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
        gradients = {name: parameter.grad for name, parameter in own.trained().items()}
        for name, parameter in part.trained().items():
            assert gradients[name] is not None and parameter.grad is not None, name
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=2e-5, msg=name)


def test_a_distinct_source_stands_once() -> None:
    alone = cells("llama", "labels", False)
    batch = laid_out(alone)
    beside = ("flare", "source_prefix")
    reading = [rows for settings, rows in CELLS.values() if settings.get("method", "flare") in beside]
    read = {tuple((ROWS + OTHER)[row].sources[0][0]) for rows in reading for row in rows}
    assert batch.sources == len(read)


def test_a_joint_batch_goes_to_a_gpu_from_pinned_memory_and_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = laid_out(cells("llama", "labels", False))
    pinned = list[int]()

    def to(tensor: torch.Tensor, device: torch.device, *, non_blocking: bool = False) -> torch.Tensor:
        assert non_blocking and id(tensor) in pinned
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(id(tensor)) or tensor)
    monkeypatch.setattr(torch.Tensor, "to", to)
    sent = batch.to(torch.device("cuda", 0))
    rows = [share.source_rows_Y for share in sent.shares.values()]
    assert all(id(part) in pinned for part in (sent.input_ids, sent.answer_columns_N, *rows) if part is not None)
    assert any(part is not None for part in rows) and id(sent.shares[0].batch.answers_BN) in pinned


def test_one_cell_of_a_joint_model_is_asked_alone() -> None:
    """Bit for bit what it says where it is alone; the others are as if they were not."""
    alone = cells("gemma3", "vocabulary", False)
    joint = together("gemma3", alone).eval()
    with torch.no_grad():
        for number, (_, batch, own) in enumerate(alone):
            assert torch.equal(joint(batch, cell=number), own.eval()(batch))


def test_dropout_of_every_cell_is_switched_in_one_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = [make_config(objective="labels", dropout=0.3, method=method) for method in ("lora", "flare")]
    joint = together("llama", [(config, make_batch(ROWS, config), build("llama", config)) for config in configs])
    walks: list[bool] = []
    walk = TwoStreamModel.train
    monkeypatch.setattr(TwoStreamModel, "train", lambda cell, mode=True: (walks.append(mode), walk(cell, mode))[1])
    for mode in (False, True):
        joint.train(mode)
        for cell in joint.cells:
            assert cell.training == mode
            drawing = {name for name, module in cell.named_modules() if module.training and name}
            assert drawing == {name for name, _ in cell.named_modules() if "lora_dropout" in name and mode}
    assert walks == [False, True]


def test_a_cell_that_makes_nan_leaves_the_others_bit_by_bit() -> None:
    """The losses and the gradients of the others; its own are NaN."""
    alone, found = cells("llama", "labels", False), []
    batch = laid_out(alone)
    for spoilt in (False, True):
        joint = together("llama", alone)
        if spoilt:
            next(iter(joint.cells[1].trained().values())).data.fill_(torch.nan)
        losses = joint(batch, with_loss=True)
        losses.sum().backward()
        found.append((losses, [[p.grad for p in part.trained().values()] for part in joint.cells]))
    (good, wanted), (bad, got) = found
    assert bad[1].isnan()
    for number in set(range(len(alone))) - {1}:
        assert torch.equal(good[number], bad[number])
        assert all(map(torch.equal, wanted[number], got[number]))


def test_dropout_is_drawn_as_alone() -> None:
    """Each cell from its own seed, whatever the others draw between."""
    settings = [{"method": "lora"}, {"pairing": "output"}, {"pairing": "module"}]
    configs = [make_config(objective="labels", dropout=0.3, **own) for own in settings]
    alone = [(config, make_batch(ROWS, config), build("llama", config)) for config in configs]
    joint = together("llama", alone)
    joint.seed({0: 5, 1: 6, 2: 7})
    batch = laid_out(alone)
    twice = [joint(batch, with_loss=True), joint(batch, with_loss=True)]
    assert not torch.equal(*twice)
    for number, (_, own_batch, own) in enumerate(alone):
        own.seed({0: 5 + number})
        for losses in twice:
            torch.testing.assert_close(losses[number], own(own_batch, with_loss=True), rtol=1e-5, atol=1e-5)


def test_rows_without_a_source_and_cells_without_rows() -> None:
    """A joint batch of plain cells alone, and one without some cells."""
    alone = cells("llama", "labels", False)
    joint = together("llama", alone)
    for chosen in ([0], [2, 7], [0, 6], [1, 8], [9, 0], [9, 10], [11, 1]):
        config, batch, own = alone[chosen[0]]
        without_weights = replace(batch, weights_B=torch.zeros_like(batch.weights_B))
        cells_now = [(config, without_weights, own) if n == chosen[0] else one for n, one in enumerate(alone)]
        losses = joint(laid_out(cells_now, chosen), with_loss=True)
        wanted = [cells_now[number][2](cells_now[number][1], with_loss=True) for number in chosen]
        torch.testing.assert_close(losses, torch.stack(wanted), rtol=1e-5, atol=1e-5)
        assert losses[0] == 0
