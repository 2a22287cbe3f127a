"""A base that every rank holds whole trains as one in ZeRO-3 shards does, and either goes on with the other's state."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.distributed import run_ranks, shared_environment
from tests.forms import PAPER_FORM
from tests.mt import write_mt_model
from tests.toy import toy_settings, write_config
from tests.training.whole_worker import BATCHES, SAVED, TRAIN, Branching

RICH = {"pairing": "module", "fusion": "cross_attention", "fusion_heads": 2, "train_head": True, "dropout": 0.1}
RUNS: dict[str, tuple[str, dict, dict]] = {
    "lora": ("lora", {"dropout": 0.2}, {"objective": "labels"}),
    "flare": ("flare", RICH, {"micro_batch_size": 2, "gradient_checkpointing": True, "learning_rate_ratio": 4.0}),
    "x_mixup": ("x_mixup", {}, {}),
    "flare_mt": ("flare_mt", PAPER_FORM, {"micro_batch_size": 2}),
}
ON_ONE_RANK = ("lora",)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("toy")
    write_mt_model(directory / "nllb")
    return directory


def config_of(root: Path, name: str, ranks: int) -> str:
    method, adapter, train = RUNS[name]
    common = {
        "steps": 40,
        "batch_size": 7,
        "micro_batch_size": 4,
        "max_grad_norm": 2.6,
        "objective": "vocabulary",
        "learning_rate": 0.002,
    }
    settings = toy_settings(root, method=method, name=f"{name}-{ranks}", **common | train) | {"adapter": adapter}
    settings["task"] |= {"train_rows": 24, "validation_rows": 8, "test_rows": 8}
    if method == "flare_mt":
        settings["source"] = {"mt_encoder": str(root / "nllb"), "mt_language": "pol_Latn"}
    return str(write_config(settings))


@pytest.fixture(scope="module")
def found(root: Path) -> dict[int, dict[str, Any]]:
    """What the runs gave, by the number of ranks and by name."""
    for ranks, names in ((1, ON_ONE_RANK), (2, tuple(RUNS))):
        configs = [config_of(root, name, ranks) for name in names]
        run_ranks(["tests.training.whole_worker", str(root / f"{ranks}.json"), *configs], ranks)
    return {ranks: json.loads((root / f"{ranks}.json").read_text()) for ranks in (1, 2)}


BOTH = [(name, 2) for name in RUNS] + [(name, 1) for name in ON_ONE_RANK]


@pytest.mark.parametrize(("name", "ranks"), BOTH)
def test_whole_equals_sharded(root: Path, found: dict[int, dict[str, Any]], name: str, ranks: int) -> None:
    whole, sharded = (found[ranks][f"{name}-{ranks}"][held] for held in ("whole", "sharded"))
    np.testing.assert_allclose(whole["loss"], sharded["loss"], rtol=1e-5)
    np.testing.assert_allclose(whole["grad_norm"], sharded["grad_norm"], rtol=1e-4)
    assert whole["loss"][-1] < 0.9 * whole["loss"][0], "nothing is learned"
    assert min(whole["grad_norm"]) < 2.6 < max(whole["grad_norm"]), "clipping plays no part"
    assert (whole["tokens"], whole["flops"]) == (sharded["tokens"], sharded["flops"])
    trained = [load_file(root / f"{name}-{ranks}" / f"of-{held}.trained") for held in ("whole", "sharded")]
    for matrix, values in trained[0].items():
        error = (values - trained[1][matrix]).norm() / trained[1][matrix].norm()
        assert error < 1e-5, f"{matrix}: {error}"


def test_either_goes_on_with_the_others_state(found: dict[int, dict[str, Any]]) -> None:
    for ranks in (1, 2):
        run = found[ranks][f"lora-{ranks}"]
        straight = run["whole"]["loss"][SAVED:]
        assert run["whole-whole"] == straight, "bit for bit"
        for moved in ("sharded-whole", "whole-sharded"):
            np.testing.assert_allclose(run[moved], straight, rtol=1e-5)


def test_a_step_waits_once_and_a_save_is_three_gathers(found: dict[int, dict[str, Any]]) -> None:
    for run in RUNS:
        of_run = found[2][f"{run}-2"]
        assert of_run["whole"]["collectives_of_a_save"] == 0
        assert of_run["sharded"]["collectives_of_a_save"] == of_run["sharded"]["gathers_of_a_save"] == 3
        assert of_run["whole"]["collectives_of_a_step"] == ["gloo:all_reduce"]
        assert [place for place in of_run["whole"]["waits_of_a_micro_step"] if "/flare_ds/" in place] == []


def test_a_matrix_that_no_row_reaches_is_decayed_and_the_same_on_every_rank(found: dict[int, dict[str, Any]]) -> None:
    """Against AdamW on all micro-batches at once, every gradient there from the start.

    A step before, whose loss is not finite on one rank, has left nothing.
    """
    model = Branching()
    optimizer = torch.optim.AdamW(model.parameters(), lr=TRAIN.learning_rate, weight_decay=TRAIN.weight_decay)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        losses = [model((torch.tensor(x), reached), with_loss=True) for rank in BATCHES for x, reached in rank]
        (sum(losses) / 4).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), TRAIN.max_grad_norm)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[2]["branching"][name], parameter.tolist(), rtol=1e-6, atol=0)


ALONE = """
import sys
from flare_ds.__main__ import main
assert main(["train", sys.argv[1]]) == main(["evaluate", sys.argv[1]]) == 0
import torch.distributed as dist
assert not dist.is_initialized()
assert not [name for name in sys.modules if name.partition(".")[0] == "deepspeed"]
"""


def test_a_process_alone_needs_neither_deepspeed_nor_a_group(root: Path) -> None:
    settings = toy_settings(root, name="alone", steps=2, whole_model="auto") | {"deepspeed": "nowhere/to-be.json"}
    command = [sys.executable, "-c", ALONE, str(write_config(settings))]
    done = subprocess.run(command, env=shared_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "each rank holds the whole base: there is one rank" in done.stderr
    assert "deepspeed=nowhere/to-be.json is ignored" in done.stderr
    assert json.loads((root / "alone/training.json").read_text())["engine"] == "whole"
    assert "whole_model: auto" in (root / "alone/config.yaml").read_text()
