"""What `deepspeed: auto` means: the shipped JSON that fits the device and `model.dtype`."""

from flare_ds.config import Config
from flare_ds.runtime.process_group import device
from flare_ds.shipped import AUTO

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
