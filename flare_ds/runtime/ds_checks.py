"""What a DeepSpeed JSON may say here, so that nothing in it is silently ignored, or fails hours later.

DeepSpeed reads no key that it does not know, and this project takes optimizer, schedule and batches from the YAML.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from flare_ds.config import Config
from flare_ds.exceptions import ConfigError
from flare_ds.registry import suggestion
from flare_ds.runtime.timeouts import check_timeouts

_SERVES = (
    *("bf16", "communication_data_type", "data_types", "zero_optimization", "zero_allow_untested_optimizer"),
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "flops_profiler", "comms_logger"),
    *("timers", "disable_python_gc", "tensorboard", "wandb", "csv_monitor", "comet", "zero_force_ds_cpu_optimizer"),
)
_SCALED = ("stage 3 scales no gradients before it sums them with reduce_scatter", "they are averaged either way")
_REFUSED = {
    "optimizer": ("the optimizer is AdamW, made from the YAML", "set train.learning_rate and train.weight_decay"),
    "scheduler": ("the learning rate follows the YAML", "set train.schedule and train.warmup_ratio"),
    "fp16": ("a model runs in bfloat16 or float32", "set model.dtype"),
    "amp": ("a model runs in bfloat16 or float32", "set model.dtype"),
    "torch_autocast": ("a model runs in bfloat16 or float32", "set model.dtype"),
    "activation_checkpointing": ("it would not be read", "set train.gradient_checkpointing"),
    "compile": ("nothing is compiled here", "nothing is lost by it"),
    "prescale_gradients": _SCALED,
    "gradient_predivide_factor": _SCALED,
}
_QUANTIZED = ("the adapter would train on weights or gradients that are rounded on their way", "set model.quantization")
_OFFLOADED = ("a saved adapter is read into the ranks' shards, which must lie where the model runs", "use more ranks")
_SMALL = (
    "only the adapter has an optimizer state, a few MB, saved from where the model runs",
    "nothing is gained by it",
)
_MICS = ("a saved adapter is read into the shards of all ranks", "use zero_hpz_partition_size within each node")
_ZERO_REFUSED = {
    "offload_param": _OFFLOADED,
    "cpu_offload_param": _OFFLOADED,
    "offload_optimizer": _SMALL,
    "cpu_offload": _SMALL,
    "cpu_offload_use_pin_memory": _SMALL,
    "zenflow": _SMALL,
    "mics_shard_size": _MICS,
    "mics_hierarchical_params_gather": _MICS,
    "zero_quantized_weights": _QUANTIZED,
    "zero_quantized_nontrainable_weights": _QUANTIZED,
    "zero_quantized_gradients": _QUANTIZED,
}
_FILLED = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("communication_data_type", "zero_allow_untested_optimizer", "reduce_bucket_size", "zero_hpz_partition_size"),
    *("stage3_max_reuse_distance", "stage3_max_live_parameters", "stage3_prefetch_bucket_size"),
    *("stage3_param_persistence_threshold", "stage"),
)
"""Where "auto" may stand, or is refused as any other word; elsewhere DeepSpeed drops it, and takes its own default."""
_NEUTRAL = {"gradient_predivide_factor": 1.0}
"""What switches nothing on, of a key where nothing is off."""


def problems(settings: dict[str, Any], config: Config) -> Iterator[ConfigError]:
    """What the settings of a JSON say that cannot work, or would not be read."""
    origin, from_yaml = config.deepspeed, _from_yaml(config)
    yield from _misplaced(settings, (*_SERVES, *from_yaml), _REFUSED, origin)
    for name, (key, value) in from_yaml.items():
        if settings.get(name, "auto") not in ("auto", value):
            problem = f"{name}={settings[name]!r} in {origin}, but {key}={value!r}"
            yield ConfigError(problem, fix=f'write "auto": the number comes from {key}')
    for name in ("bf16", "data_types", "zero_optimization"):
        if not isinstance(settings.get(name, {}), dict):
            yield ConfigError(
                f"{name}={settings[name]!r:.200} in {origin} is no section", fix="see ds_configs/README.md"
            )
            return
    bf16 = settings.get("bf16", {}).get("enabled", False)
    if bf16 not in ("auto", config.model.dtype == "bfloat16"):
        yield ConfigError(
            f"model.dtype={config.model.dtype!r}, but bf16.enabled={str(bf16).lower()} in {origin}",
            fix="leave deepspeed out, and it follows model.dtype (auto), or give another: see ds_configs/README.md",
        )
    yield from _rounding(settings, origin)
    yield from _zero_problems(settings.get("zero_optimization", {}), origin)


def _rounding(settings: dict[str, Any], origin: str) -> Iterator[ConfigError]:
    """What would train the adapters, which are float32, on gradients or values of fewer digits."""
    told = {"communication_data_type": settings.get("communication_data_type", "fp32")}
    told |= {f"data_types.{name}": value for name, value in settings.get("data_types", {}).items()}
    for name, value in told.items():
        if name not in ("communication_data_type", "data_types.grad_accum_dtype") or value != "fp32":
            problem = f"{name}={value!r} in {origin}, but an adapter and its gradients are float32 throughout"
            yield ConfigError(problem, fix="remove it; float32 is filled in")
    for name, value in settings.get("bf16", {}).items():
        if name != "enabled" and not _is_off(value):
            problem = f"bf16.{name}={value!r} in {origin}, but an adapter and its gradients are float32 throughout"
            yield ConfigError(problem, fix="remove it")


def _from_yaml(config: Config) -> dict[str, tuple[str, Any]]:
    train = config.train
    return {
        "train_batch_size": ("train.batch_size", train.batch_size),
        "train_micro_batch_size_per_gpu": ("train.micro_batch_size", train.micro_batch_size),
        "gradient_accumulation_steps": ("the number of micro-batches", 1),
        "gradient_clipping": ("train.max_grad_norm", train.max_grad_norm),
    }


def _zero_problems(zero: dict[str, Any], origin: str) -> Iterator[ConfigError]:
    check_timeouts()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # slow, and a whole model does without DeepSpeed

    known = [field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()]
    wrong = list(_misplaced(zero, known, _ZERO_REFUSED, origin, "zero_optimization."))
    yield from wrong
    if zero.get("stage") != 3:
        problem = f"zero_optimization.stage={zero.get('stage')!r} in {origin}, but the base is sharded by stage 3 alone"
        fix = 'write "stage": 3; or set train.whole_model=true, where each rank holds the whole base without DeepSpeed'
        yield ConfigError(problem, fix=fix)
    try:
        DeepSpeedZeroConfig(**{key: value for key, value in zero.items() if not wrong and value != "auto"})
    except (ValidationError, AssertionError, TypeError, ValueError) as error:
        found = error.errors() if isinstance(error, ValidationError) else [{"loc": (), "msg": str(error)}]
        for details in found:
            name = ".".join(map(str, ("zero_optimization", *details["loc"])))
            yield ConfigError(f"{name} in {origin}: {details['msg']}", fix=f"change {name}")


def _misplaced(
    settings: dict[str, Any],
    known: Any,
    refused: dict[str, tuple[str, str]],
    origin: str,
    section: str = "",
) -> Iterator[ConfigError]:
    for key, value in settings.items():
        if key in refused and value != _NEUTRAL.get(key) and not _is_off(value):
            reason, fix = refused[key]
            yield ConfigError(f"{section}{key} in {origin} cannot be used: {reason}", fix=f"remove it; {fix}")
        elif key not in refused and key not in known:
            yield ConfigError(f"{section}{key} in {origin} would be ignored", fix=suggestion(key, known))
        elif value == "auto" and key not in refused and key not in _FILLED:
            problem = f'{section}{key}="auto" in {origin}, but nobody fills it in'
            yield ConfigError(problem, fix="write a value, or remove it: DeepSpeed has a default")


def _is_off(value: Any) -> bool:
    """Whether a setting switches nothing on: a section has a switch of its own, or all in it is off."""
    if isinstance(value, dict) and value:
        return value.get("enabled", value.get("device")) in (False, "none") or all(map(_is_off, value.values()))
    return value in (None, False, -1)
