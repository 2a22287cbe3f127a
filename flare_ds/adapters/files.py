"""Adapter files: PEFT's layout and key names, and our fusion settings beside them.

    adapter/adapter_model.safetensors   base_model.model.…q_proj.lora_A.weight, fp32
    adapter/adapter_config.json         PEFT's LoraConfig; for flare also a "flare_ds" section

A plain LoRA adapter loads in PEFT as it is. A fusion adapter carries its own peft_type, so PEFT alone refuses it
instead of silently running it as plain LoRA (PEFT only warns about config keys it does not know).
"""

import json
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flare_ds.adapters.inject import ADAPTER
from flare_ds.config import AdapterConfig, Config
from flare_ds.exceptions import CheckpointError
from flare_ds.files import write_atomically, write_json
from flare_ds.models.partitioned import full_numel

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
FUSION_PEFT_TYPE = "FLARE_DS"


def peft_key(parameter_name: str) -> str:
    """PEFT's key of a parameter of the two-stream model: its own prefix and the adapter's name taken out."""
    return parameter_name.removeprefix("model.").replace(f".{ADAPTER}.", ".")


def save_adapter(directory: Path, tensors: dict[str, Tensor], model: PeftModel, config: Config) -> None:
    """Write an adapter; weights last, so a directory with weights is complete.

    Args:
        directory: made if absent.
        tensors: whole adapter matrices by parameter name.
        model: whose PEFT configuration is written.
        config: the run's settings.
    """
    settings = _peft_settings(model, config.model.base)
    if config.method == "flare":
        settings |= {"peft_type": FUSION_PEFT_TYPE, "flare_ds": config.adapter.model_dump(mode="json")}
    write_json(directory / SETTINGS, settings)
    weights = {peft_key(name): tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(directory / WEIGHTS, lambda path: save_file(weights, path, metadata={"format": "pt"}))


def load_adapter(directory: Path, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Read an adapter written by `save_adapter`, by parameter name of the model that takes it.

    Raises:
        CheckpointError: the files are missing or damaged, or do not hold exactly this model's adapter.
    """
    path = directory / WEIGHTS
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the adapter {path}: {error}", fix="train it again, or check RUN") from error
    keys = {peft_key(name): name for name in parameters}
    if differing := sorted(keys.keys() ^ weights.keys()):
        raise CheckpointError(
            f"the adapter {path} and the model differ in {len(differing)} of their matrices, first {differing[0]!r}",
            fix="use the base model and the adapter settings it was trained with",
        )
    for key, name in keys.items():
        if weights[key].numel() != full_numel(parameters[name]):
            raise CheckpointError(
                f"{key!r} in {path} has shape {tuple(weights[key].shape)}, which does not fit the model",
                fix="use the base model and the rank (adapter.r) it was trained with",
            )
    return {name: weights[key] for key, name in keys.items()}


def check_fusion(directory: Path, adapter: AdapterConfig, *, fused: bool) -> None:
    """Check that saved fusion settings are the ones about to be used.

    Raises:
        CheckpointError: naming the first setting that differs.
    """
    try:
        saved = json.loads((directory / SETTINGS).read_text(encoding="utf-8")).get("flare_ds")
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"cannot read {directory / SETTINGS}: {error}", fix="train it again") from error
    if fused != (saved is not None):
        kind = "a fusion" if saved is not None else "a plain LoRA"
        raise CheckpointError(f"{directory} holds {kind} adapter, not what method asks for", fix="correct method")
    wanted = adapter.model_dump(mode="json")
    for key, value in (saved or {}).items():
        if wanted.get(key) != value:
            raise CheckpointError(
                f"{directory} was trained with adapter.{key}={value!r}, not {wanted.get(key)!r}",
                fix=f"set adapter.{key}={value!r}",
            )


def _peft_settings(model: PeftModel, base: str) -> dict[str, Any]:
    settings = model.peft_config[ADAPTER].to_dict()
    settings |= {"base_model_name_or_path": base, "inference_mode": True}
    settings["target_modules"] = sorted(settings["target_modules"])
    return settings
