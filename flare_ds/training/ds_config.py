"""The DeepSpeed settings: which JSON, and in it what depends on the model and the run.

`deepspeed: auto` is the shipped JSON that fits the device and `model.dtype`.

A shipped JSON says how to shard and in which precision; `"auto"` stands where the value follows from the base:

    stage3_max_reuse_distance            1.2 layers   a layer stays gathered between its source and its target use
    stage3_max_live_parameters           2.5 layers
    stage3_prefetch_bucket_size          1 layer
    stage3_param_persistence_threshold   just over the largest adapter matrix: adapters are never partitioned away

The micro-batch size and the clipping always come from the YAML; micro-steps are counted by the trainer.
"""

import json
from pathlib import Path
from typing import Any

from deepspeed.accelerator import get_accelerator
from transformers import PreTrainedModel

from flare_ds.config import Config
from flare_ds.exceptions import ConfigError, together
from flare_ds.models.decoder import decoder_layers
from flare_ds.models.quantized import stored_size
from flare_ds.shipped import AUTO, is_name, shipped_file
from flare_ds.text_file import read_text
from flare_ds.training.ds_checks import problems

_FITTING = {
    (True, "bfloat16"): "zero3_cpu",
    (True, "float32"): "zero3_fp32_cpu",
    (False, "bfloat16"): "zero3_bf16",
    (False, "float32"): "zero3_fp32",
}
"""Names by whether the model runs on a CPU, and by its precision."""


def resolve_ds_config(config: Config, shape: PreTrainedModel) -> dict[str, Any]:
    """The DeepSpeed configuration of this run.

    Args:
        config: the run's settings.
        shape: the base on the meta device.

    Raises:
        ConfigError: see `read_ds_config`.
    """
    settings = read_ds_config(config)
    zero = settings["zero_optimization"]
    zero.update({key: value for key, value in _sizes(config, shape).items() if zero.get(key) == "auto"})
    settings.update(
        train_micro_batch_size_per_gpu=config.train.micro_batch_size,
        gradient_accumulation_steps=1,  # how many micro-steps a step has differs: the trainer says which is the last
        gradient_clipping=config.train.max_grad_norm,
    )
    settings.pop("train_batch_size", None)
    return settings


def read_ds_config(config: Config) -> dict[str, Any]:
    """The JSON that the run names, checked; its precision is filled in.

    Raises:
        ConfigError: it cannot be read, names a key twice, or says what cannot work or would not be read here.
    """
    config = with_chosen_deepspeed(config)
    settings = _read(config.deepspeed)
    wrong = list(problems(settings, config))
    if wrong:
        raise together(wrong, config.deepspeed)
    if settings.get("bf16", {}).get("enabled") == "auto":
        settings["bf16"]["enabled"] = config.model.dtype == "bfloat16"
    return settings


def with_chosen_deepspeed(config: Config) -> Config:
    """A config that says what `deepspeed: auto` means on this machine; any other stays as it is."""
    if config.deepspeed != AUTO:
        return config
    on_cpu = get_accelerator().device_name() == "cpu"
    return config.model_copy(update={"deepspeed": _FITTING[on_cpu, config.model.dtype]})


def _read(path: str) -> dict[str, Any]:
    text = read_text(shipped_file(path) if is_name(path) else Path(path), named=f"deepspeed={path!r}")
    try:
        settings = json.loads(text, object_pairs_hook=_section, parse_constant=_no_number)
    except RecursionError as error:
        raise ConfigError(f"deepspeed={path!r} is nested too deeply", fix="see ds_configs/README.md") from error
    except ValueError as error:  # JSONDecodeError is one
        fix = "mend the place named above; JSON has no comments, and no comma before a closing bracket"
        raise ConfigError(f"deepspeed={path!r} is not valid JSON: {error}", fix=fix) from error
    if not isinstance(settings, dict):
        raise ConfigError(
            f"deepspeed={path!r} holds no settings (found {settings!r:.200})", fix="see ds_configs/README.md"
        )
    return settings


def _section(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    section = dict(pairs)
    twice = sorted({key for key, _ in pairs if [name for name, _ in pairs].count(key) > 1})
    if twice:
        raise ValueError(f"key {twice[0]!r} stands twice in one section")
    return section


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _sizes(config: Config, shape: PreTrainedModel) -> dict[str, int]:
    layer = max(stored_size(layer, config.model).elements for layer in decoder_layers(shape))
    widest = max(max(p.shape) for layer in decoder_layers(shape) for p in layer.parameters())
    return {
        "stage3_max_reuse_distance": int(1.2 * layer),
        "stage3_max_live_parameters": int(2.5 * layer),
        "stage3_prefetch_bucket_size": layer,
        "stage3_param_persistence_threshold": config.adapter.r * widest + 1,
    }
