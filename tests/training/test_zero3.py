"""Real ZeRO-3 ranks compute what one plain PyTorch process computes, step by step."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flare_ds.config import Config
from flare_ds.data.batching import MicroBatch, TrainOrder
from flare_ds.data.cache import open_cache, prepare_cache
from flare_ds.data.collate import collate
from flare_ds.models.loading import load_tokenizer
from flare_ds.models.two_stream import build_model
from tests.distributed import run_ranks
from tests.toy import REPOSITORY, toy_settings, write_config

STEPS = 10


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy")


def plain_torch(config: Config) -> dict[str, list[float]]:
    """The same run without an engine: the whole batch at once, AdamW, one clipped step, the schedule by hand."""
    cache = open_cache(prepare_cache(config, load_tokenizer(config.model)))
    split, train = cache.split("train"), config.train
    model = build_model(config, label_tokens=cache.label_tokens, labels=tuple(cache.labels)).train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, weight_decay=train.weight_decay)
    streams = ("source", "target") if config.method == "flare" else ("target",)
    order = TrainOrder(len(split), train.batch_size, train.seed)

    def logits_and_targets(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        batch = collate(
            split,
            MicroBatch(rows, np.ones(len(rows), np.float32)),
            streams=streams,
            objective=train.objective,
            pad_id=cache.pad_id,
        )
        return model(batch), batch.answers_BN

    losses = []
    for step in range(STEPS):
        warmup = train.steps * 0.1
        share = (step + 1) / warmup if step < warmup else 1 - (step - warmup) / (train.steps - warmup)
        optimizer.param_groups[0]["lr"] = train.learning_rate * share
        logits, answers = logits_and_targets(order.rows(step))
        log_probabilities = logits.log_softmax(-1)
        picked = [
            log_probabilities[i, k, token] for i, row in enumerate(answers) for k, token in enumerate(row) if token >= 0
        ]
        loss = -sum(picked) / len(picked)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, train.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        logits, _ = logits_and_targets(np.arange(8))
    return {"losses": losses, "logits": logits.flatten().tolist()}


# batch 18 in micro-batches of 4 on 2 ranks: 3 micro-steps of unequal rows; with the vocabulary objective each answer
# also has its own number of tokens
@pytest.mark.parametrize("objective", ["labels", "vocabulary"])
def test_ranks_equal_plain_torch(root: Path, objective: str) -> None:
    name = f"equal-{objective}"
    settings = toy_settings(
        root, name=name, steps=STEPS, batch_size=18, micro_batch_size=4, objective=objective, max_grad_norm=0.5
    )
    settings["adapter"] = {"pairing": "output", "align": "left"}
    expected = plain_torch(Config.model_validate(settings))
    config_path = write_config(settings)
    for world_size in (1, 2):
        out = root / f"{name}-{world_size}.json"
        run_ranks(["tests.training.steps_worker", str(config_path), str(out)], world_size)
        found = json.loads(out.read_text())
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
        np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-4, rtol=1e-4)
        assert all(norm > 0 for norm in found["norms"].values())


def test_bf16_base_with_fp32_adapter(root: Path) -> None:
    settings = toy_settings(root, name="bf16", steps=STEPS)
    settings["model"]["dtype"] = "bfloat16"
    settings["deepspeed"] = str(REPOSITORY / "ds_configs/zero3_cpu.json")
    out = root / "bf16.json"
    run_ranks(["tests.training.steps_worker", str(write_config(settings)), str(out)], 2)
    losses = json.loads(out.read_text())["losses"]
    assert np.isfinite(losses).all()
