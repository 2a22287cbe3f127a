"""Each stream goes through the layers with its own columns, and no further than somebody reads: the result is the same.

What is compared with is the same batch whose first columns are said to be those of the whole grid; sums over other
numbers of columns round otherwise, and these models' weights are ten times as large as a fresh one's.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flare_ds.batches.collate import Batch
from flare_ds.models.two_stream import TwoStreamModel
from tests.by_hand import build as build_small
from tests.by_hand import make_batch, make_config, make_rows
from tests.models.architectures import ATTENTIONS
from tests.models.test_architectures import build, config_of

# (prompt, answer) of the source and of the target, beyond the window; in each one stream is about twice as long
LENGTHS: dict[str, list[Any]] = {
    "short sources": [([(5, 4)], (11, 2)), ([(3, 1)], (8, 3)), ([(0, 0)], (5, 2))],
    "short targets": [([(11, 4)], (5, 2)), ([(8, 1)], (6, 1)), ([(0, 0)], (2, 3))],
}
SETTINGS: list[dict[str, Any]] = [
    {"span": "full", "sources": 2, "source_weights": "learned", "align": "stretch"},
    {"span": "full", "fusion": "cross_attention", "checkpointing": True},
    {"pairing": "input", "align": "left", "objective": "labels"},
    {"pairing": "module", "fused_modules": ["o_proj", "down_proj"], "train_head": True},
]


def logits_and_gradients(model: TwoStreamModel, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = model(batch, with_loss=True)
    loss.backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return model(batch).detach(), found | {"loss": loss.detach()}


def assert_trimming_changes_nothing(model: TwoStreamModel, batch: Batch) -> None:
    trimmed, of_trimmed = logits_and_gradients(model, batch)
    whole, of_whole = logits_and_gradients(model, replace(batch, first_columns=(0, 0)))
    assert any(batch.first_columns)
    torch.testing.assert_close(trimmed, whole, rtol=0, atol=2e-6 * max(1.0, float(whole.abs().max())))
    assert of_trimmed.keys() == of_whole.keys()
    for name, gradient in of_whole.items():
        torch.testing.assert_close(of_trimmed[name], gradient, rtol=0, atol=3e-5 * float(gradient.abs().max()) + 1e-7)


@pytest.mark.parametrize("longer", LENGTHS)
@pytest.mark.parametrize(("name", "attention"), ATTENTIONS)
def test_in_every_architecture(name: str, attention: str, longer: str) -> None:
    config = config_of(name)
    assert_trimming_changes_nothing(
        build(name, attention, config), make_batch(make_rows(1, LENGTHS[longer]), config, left=1)
    )


@pytest.mark.parametrize("longer", LENGTHS)
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda it: "-".join(map(str, it.values())))
def test_with_every_kind_of_setting(settings: dict[str, Any], longer: str) -> None:
    config = make_config(**settings)
    rows = make_rows(
        config.sources, [(of_sources * config.sources, of_target) for of_sources, of_target in LENGTHS[longer]]
    )
    assert_trimming_changes_nothing(build_small("gemma3", config, layers=3), make_batch(rows, config))


@pytest.mark.parametrize("pairing", ["output", "input", "module"])
def test_twenty_steps_lose_as_if_everything_were_computed(pairing: str) -> None:
    """All columns, and all of the last layer for the sources."""
    found, operations = [], []
    for everything in (True, False):
        fused = ["o_proj", "down_proj"] if pairing == "module" else ["q_proj", "v_proj"]
        config = make_config(pairing=pairing, fused_modules=fused)
        model = build_small("gemma2", config)
        model.streams.layers[-1].is_last = not everything
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        losses = []
        with FlopCounterMode(display=False) as counter:
            for step in range(20):
                batch = make_batch(make_rows(1, LENGTHS["short sources"], seed=step), config)
                loss = model(replace(batch, first_columns=(0, 0)) if everything else batch, with_loss=True)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        found.append(losses)
        operations.append(counter.get_total_flops())
    assert found[1] == pytest.approx(found[0], rel=1e-5) and found[0][0] != pytest.approx(found[0][-1], rel=0.01)
    assert operations[1] < 0.95 * operations[0]
