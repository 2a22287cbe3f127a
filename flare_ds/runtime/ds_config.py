"""The DeepSpeed settings: which JSON, and in it what depends on the model and the run.

A shipped JSON says how to shard and in which precision; `"auto"` may stand where the value follows from the base, or
from the machine:

    stage3_max_reuse_distance            1.2 layers   a layer stays gathered between its source and its target use
    stage3_max_live_parameters           3.5 layers   the one at work, the next, and the last ones until their backward
    stage3_prefetch_bucket_size          1 layer
    stage3_param_persistence_threshold   just over the largest adapter matrix: adapters are never partitioned away
    zero_hpz_partition_size              the ranks of a host, where there are several hosts
    reduce_bucket_size                   50 M elements on GPUs, 5 M on CPUs, as in the shipped JSONs

The micro-batch size always comes from the YAML; we clip ourselves; micro-steps are counted by the trainer.
"""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from flare_ds.adapters.decoder import decoder_layers
from flare_ds.config import Config
from flare_ds.exceptions import ConfigError, together
from flare_ds.models.quantized import stored_size
from flare_ds.runtime.ds_checks import problems
from flare_ds.runtime.process_group import device, hosts
from flare_ds.shipped import AUTO, is_name, shipped_file
from flare_ds.text_file import read_text

_FITTING = {
    (True, "bfloat16"): "zero3_cpu",
    (True, "float32"): "zero3_fp32_cpu",
    (False, "bfloat16"): "zero3_bf16",
    (False, "float32"): "zero3_fp32",
}
"""Names by whether the model runs on a CPU, and by its precision."""


def with_chosen_deepspeed(config: Config) -> Config:
    """A config that says what `deepspeed: auto` means on this machine; any other stays as it is."""
    if config.deepspeed != AUTO:
        return config
    on_cpu = device().type == "cpu"
    return config.model_copy(update={"deepspeed": _FITTING[on_cpu, config.model.dtype]})


def resolve_ds_config(configs: Sequence[Config], shape: PreTrainedModel) -> dict[str, Any]:
    """The DeepSpeed configuration of a job, whose cells share all that is read here but their ranks r."""
    config = configs[0]
    settings = read_ds_config(config)
    zero = settings["zero_optimization"]
    if copies := zero.get("zero_hpz_partition_size"):
        zero["zero_hpz_partition_size"] = copy_size(copies, hosts(), config.deepspeed)
    zero.update({key: value for key, value in _sizes(configs, shape).items() if zero.get(key) == "auto"})
    settings.update(
        train_micro_batch_size_per_gpu=config.train.micro_batch_size,
        gradient_accumulation_steps=1,  # how many micro-steps a step has differs: the trainer says which is the last
        gradient_clipping=0.0,  # `CellsAdamW` clips, each cell by its own norm
        zero_allow_untested_optimizer=True,  # it is torch's AdamW
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
    settings.pop("compile", None)  # it is off, but DeepSpeed fails where it is by the name of another version's switch
    # Under bf16 DeepSpeed would sum the adapters' gradients in it, over micro-steps and over ranks.
    return settings | {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}}


def copy_size(wanted: int | Literal["auto"], host_of_rank: Sequence[str], origin: str) -> int:
    """How many ranks share a copy of the base (ZeRO++'s hpZ); 1: all do, and there is no other copy.

    Args:
        wanted: zero_hpz_partition_size; "auto": a copy a host, where there are several.
        host_of_rank: in rank order.
        origin: the JSON.

    Raises:
        ConfigError: the ranks cannot be shared out like that.
    """
    setting, ranks = f"zero_optimization.zero_hpz_partition_size={wanted!r} in {origin}", len(host_of_rank)
    if wanted != "auto":
        if ranks % min(wanted, ranks):
            problem = f"{setting} does not divide the {ranks} ranks"
            raise ConfigError(problem, fix='write "auto", or the number of ranks on each host')
        return wanted
    on_host = [len(list(together)) for _, together in groupby(host_of_rank)]
    if len(set(on_host)) > 1 or len(on_host) > len(set(host_of_rank)):
        problem = f"{setting} needs equally many consecutive ranks on each host, but has: {', '.join(host_of_rank)}"
        raise ConfigError(problem, fix="start equally many ranks on each host, or set deepspeed=auto")
    return on_host[0] if len(on_host) > 1 else 1


def _read(path: str) -> dict[str, Any]:
    text = read_text(shipped_file(path) if is_name(path) else Path(path), named=f"deepspeed={path!r}")
    try:
        settings = json.loads(text, object_pairs_hook=_section, parse_constant=_no_number)
    except RecursionError as error:
        raise ConfigError(f"deepspeed={path!r} is nested too deeply", fix="see ds_configs/README.md") from error
    except ValueError as error:  # JSONDecodeError is one
        fix = "correct the place named above; JSON has no comments, and no comma before a closing bracket"
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
        raise ValueError(f"key {twice[0]!r} occurs twice in one section")
    return section


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _sizes(configs: Sequence[Config], shape: PreTrainedModel) -> dict[str, int]:
    config = configs[0]
    layer = max(stored_size(layer, config.model).elements for layer in decoder_layers(shape))
    widest = max(max(p.shape) for layer in decoder_layers(shape) for p in layer.parameters())
    return {
        "reduce_bucket_size": 5_000_000 if device().type == "cpu" else 50_000_000,
        "stage3_max_reuse_distance": int(1.2 * layer),
        "stage3_max_live_parameters": int(3.5 * layer),
        "stage3_prefetch_bucket_size": layer,
        "stage3_param_persistence_threshold": max(config.adapter.r for config in configs) * widest + 1,
    }
