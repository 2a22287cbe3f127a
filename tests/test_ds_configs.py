"""The shipped DeepSpeed configurations: DeepSpeed reads them, and they say what the design asks for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig, DtypeEnum

DIRECTORY = Path(__file__).parents[1] / "ds_configs"
FILES = sorted(DIRECTORY.glob("*.json"))

# Every setting the trainer fills in, with numbers it could choose, on one rank.
RUN_TIME = {
    "train_batch_size": 4,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "stage3_max_reuse_distance": 1_200_000,
    "stage3_max_live_parameters": 2_500_000,
    "stage3_param_persistence_threshold": 8_193,
    "stage3_prefetch_bucket_size": 1_000_000,
}


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def filled(settings: dict[str, Any]) -> dict[str, Any]:
    """Replace each "auto", in sections too, as the trainer does."""
    return {
        name: filled(value) if isinstance(value, dict) else RUN_TIME[name] if value == "auto" else value
        for name, value in settings.items()
    }


def autos(settings: dict[str, Any]) -> set[str]:
    nested = [autos(value) for value in settings.values() if isinstance(value, dict)]
    return {name for name, value in settings.items() if value == "auto"}.union(*nested)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_deepspeed_reads_it_as_it_is_meant(file: Path) -> None:
    settings = read(file)
    assert autos(settings) == set(RUN_TIME)
    config = DeepSpeedConfig(filled(settings))
    zero = config.zero_config
    assert zero.stage == 3
    assert config.communication_data_type is torch.float32
    assert DtypeEnum(config.grad_accum_dtype).value is torch.float32
    assert config.bfloat16_config.enabled == ("fp32" not in file.stem)
    assert zero.overlap_comm == ("cpu" not in file.stem)
    assert (zero.max_reuse_distance, zero.max_live_parameters) == (1_200_000, 2_500_000)
    assert (zero.param_persistence_threshold, zero.prefetch_bucket_size) == (8_193, 1_000_000)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_setting_is_one_deepspeed_knows(file: Path) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    known = {field.alias or name for name, field in fields.items()}
    assert set(read(file)["zero_optimization"]) <= known
    top = {"bf16", "communication_data_type", "data_types", "zero_optimization"} | set(RUN_TIME)
    assert set(read(file)) <= top


def test_the_readme_explains_each_file_and_setting() -> None:
    readme = (DIRECTORY / "README.md").read_text(encoding="utf-8")
    for file in FILES:
        assert f"`{file.name}`" in readme
        for name, value in read(file).items():
            for leaf in value if isinstance(value, dict) else [name]:
                assert leaf in readme, leaf
