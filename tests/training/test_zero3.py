"""Real ZeRO-3 ranks compute what one plain PyTorch process computes, step by step."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flare_ds.batches.batching import MicroBatch
from flare_ds.batches.collate import Batch, collate
from flare_ds.batches.plan import open_order
from flare_ds.config import Config
from flare_ds.data.cache import open_cache, prepare_cache
from flare_ds.models.loading import load_tokenizer
from flare_ds.models.two_stream import build_model
from flare_ds.runtime.engine import trainable_parameters
from tests.distributed import run_ranks
from tests.forms import PAPER_FORM
from tests.toy import REPOSITORY, toy_settings, write_config
from tests.training.steps_worker import STEPS

ROWS = 13  # of a step: never the same number on two ranks
# On 2 ranks 13 rows in micro-batches of at most 7 are 1 micro-step, of at most 2 are 4 of them, in 8 unequal parts.
# With the vocabulary objective each answer also has its own number of tokens.
PAPER = PAPER_FORM | {"align": "left"}
RICH = {"pairing": "module", "fusion": "cross_attention", "fusion_heads": 2, "train_head": True}
SETTINGS: dict[str, tuple[dict, dict]] = {
    "labels": (PAPER, {"micro_batch_size": 7, "objective": "labels"}),
    "checkpointed": (PAPER, {"micro_batch_size": 7, "objective": "vocabulary", "gradient_checkpointing": True}),
    "rich": (
        RICH,
        {"micro_batch_size": 2, "objective": "vocabulary", "gradient_checkpointing": True, "learning_rate_ratio": 4.0},
    ),
    "x_mixup": ({}, {"micro_batch_size": 2, "objective": "vocabulary", "gradient_checkpointing": True}),
    # Steps of about 12 rows in micro-batches of at most 3: neither number is the same in every step.
    "tokens": (PAPER, {"batch_tokens": 330, "micro_batch_tokens": 85, "objective": "vocabulary"}),
}
MICRO_STEPS = {"labels": 1, "checkpointed": 1, "rich": 4, "x_mixup": 4}  # on 2 ranks


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy")


def settings_of(root: Path, name: str, *, world_size: int) -> dict:
    adapter, train = SETTINGS[name]
    run = f"{name}-{world_size}"
    method = "x_mixup" if name == "x_mixup" else "flare"
    settings = toy_settings(root, method=method, name=run, steps=2 * STEPS, batch_size=ROWS, max_grad_norm=0.5, **train)
    if name == "tokens":  # as on several hosts, where the weights are gathered from a second copy
        settings["deepspeed"] = str(with_copies(Path(settings["deepspeed"]), root / "hpz.json"))
    return settings | {"adapter": adapter}


def with_copies(shipped: Path, path: Path) -> Path:
    found = json.loads(shipped.read_text())
    found["zero_optimization"]["zero_hpz_partition_size"] = 2
    path.write_text(json.dumps(found))
    return path


def plain_torch(config: Config) -> dict[str, list[float]]:
    """The same run without an engine: the whole batch at once, AdamW, one clipped step, the schedule by hand."""
    cache = open_cache(prepare_cache(config, load_tokenizer(config.model)))
    split, train = cache.split("train"), config.train
    model = build_model(config, label_tokens=cache.label_tokens).train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ratios = [train.learning_rate_ratio if "lora_B" in name else 1 for name in trainable_parameters(model)]
    optimizer = torch.optim.AdamW([{"params": [p]} for p in trainable], weight_decay=train.weight_decay)
    order = open_order(config, cache)

    def batch_of(rows: np.ndarray, *, source_targets: bool = False) -> Batch:
        return collate(
            split,
            MicroBatch(rows, np.ones(len(rows), np.float32)),
            streams=("source", "target"),
            objective=train.objective,
            pad_id=cache.pad_id,
            source_targets=source_targets,
        )

    def loss_of(rows: np.ndarray) -> torch.Tensor:
        """The mean over the answers' tokens; what x_mixup adds is compared with its own oracle elsewhere."""
        batch = batch_of(rows, source_targets=config.recipe.fuses == "mixup")
        places = [(i, k, token) for i, row in enumerate(batch.answers_BN) for k, token in enumerate(row) if token >= 0]
        if config.recipe.fuses == "mixup":
            return model(batch, with_loss=True) / len(places)
        log_probabilities = model(batch).log_softmax(-1)
        return -sum(log_probabilities[place] for place in places) / len(places)

    losses, norms = [], []
    for step in range(STEPS):
        warmup = train.steps * 0.1
        share = (step + 1) / warmup if step < warmup else 1 - (step - warmup) / (train.steps - warmup)
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = train.learning_rate * share * ratio
        loss = loss_of(order.rows(step))
        if not loss.isfinite():
            losses.append(loss.item())
            norms.append(np.nan)
            continue
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trainable, train.max_grad_norm).item())
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        logits = model(batch_of(np.arange(8)))
    return {"losses": losses, "grad_norms": norms, "logits": logits.flatten().tolist()}


@pytest.mark.parametrize(("name", "world_size"), [("rich", 1), *((name, 2) for name in SETTINGS)])
def test_ranks_equal_plain_torch(root: Path, name: str, world_size: int) -> None:
    settings = settings_of(root, name, world_size=world_size)
    config = write_config(settings)
    run_ranks(["tests.training.steps_worker", str(config)], world_size)
    found = json.loads(config.with_suffix(".json").read_text())
    settings["train"] |= {"gradient_checkpointing": False}
    expected = plain_torch(Config.model_validate(settings))
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
    # Adam takes the same step for a gradient of any scale, so losses alone would not show a wrong normalisation.
    np.testing.assert_allclose(found["grad_norms"], expected["grad_norms"], rtol=1e-3)
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-4, rtol=1e-4)
    assert found["gathered"] == found["seen"] and (found["seen"][1] > 0) == (world_size > 1)
    if world_size == 2 and name in MICRO_STEPS:
        assert found["micro_steps"] == MICRO_STEPS[name]
    extra = {part for part in ("lora_fusion", "lm_head", "mixing") if any(part in key for key in found["trained"])}
    assert extra == {"rich": {"lora_fusion", "lm_head"}, "x_mixup": {"mixing"}}.get(name, set())


def test_bf16_base_with_fp32_adapter(root: Path) -> None:
    settings = toy_settings(root, name="bf16", steps=2 * STEPS)
    settings["model"]["dtype"] = "bfloat16"
    settings["deepspeed"] = str(REPOSITORY / "ds_configs/zero3_cpu.json")
    config = write_config(settings)
    run_ranks(["tests.training.steps_worker", str(config)], 2)
    found = json.loads(config.with_suffix(".json").read_text())
    expected = plain_torch(Config.model_validate(settings))
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=0.02)
    # Adam takes the same step for a gradient of any scale, so losses alone would not show a wrong normalisation.
    np.testing.assert_allclose(found["grad_norms"], expected["grad_norms"], rtol=0.1)
