"""Merging refuses what does not fit, and leaves nothing behind."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flare_ds.config import Config
from flare_ds.exceptions import CheckpointError
from flare_ds.models.merge import merge_run
from tests.toy import toy_settings


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate(toy_settings(tmp_path, method="lora"))


def write_adapter(config: Config, module: str) -> None:
    directory = Path(config.run_dir) / "adapter"
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    key = f"base_model.model.{module}"
    matrices = {f"{key}.lora_A.weight": torch.ones(2, 64), f"{key}.lora_B.weight": torch.ones(64, 2)}
    save_file(matrices, directory / "adapter_model.safetensors")


def test_an_adapter_that_matches_no_weight_is_an_error(config: Config, tmp_path: Path) -> None:
    write_adapter(config, "model.layers.9.self_attn.q_proj")
    with pytest.raises(CheckpointError, match=r"match no weight of the base.*layers\.9"):
        merge_run(config, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_sum_is_the_formula(config: Config, tmp_path: Path) -> None:
    write_adapter(config, "model.layers.1.self_attn.q_proj")
    merge_run(config, tmp_path / "merged")
    before = load_file(tmp_path / "model/model.safetensors")
    after = load_file(tmp_path / "merged/model.safetensors")
    for name, tensor in before.items():
        shift = 4 / 2 * 2 if name == "model.layers.1.self_attn.q_proj.weight" else 0  # (alpha / r) times ones · ones
        torch.testing.assert_close(after[name], tensor + shift)


def test_a_run_without_an_adapter(config: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read the task adapter"):
        merge_run(config, tmp_path / "merged")
