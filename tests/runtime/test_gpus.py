"""What is asked of GPUs, where a host that has none is told that it has some."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedModel

from flare_ds.config import Config
from flare_ds.exceptions import ConfigError, HostError
from flare_ds.failures import described, end
from flare_ds.host import peak_memory, visible_gpus
from flare_ds.models import loading
from flare_ds.runtime import forming, memory, process_group
from flare_ds.runtime.filled import whole_model
from flare_ds.runtime.launched import Place
from flare_ds.tracking.figures import of_step
from tests.models.architectures import small_base
from tests.models.test_architectures import config_of
from tests.toy import toy_settings

STEP = {"loss": 1, "tokens": 9, "examples": 1, "flops": 2e12, "learning_rate": 1, "grad_norm": 1, "padded_tokens": 9}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, object], None]:
    """Lets torch.cuda say something; two GPUs are visible, and DS_ACCELERATOR does not speak of them."""

    def say(name: str, what: object) -> None:
        monkeypatch.setattr(torch.cuda, name, what)

    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(process_group, "_device", None)
    say("device_count", lambda: 2)
    say("is_available", lambda: True)
    say("current_device", lambda: 1)
    say("get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    say("max_memory_allocated", lambda: 7)
    return say


def test_gpus_are_not_asked_where_the_cpu_is_meant(gpus: object, monkeypatch: pytest.MonkeyPatch) -> None:
    step = STEP | {"step_seconds": 1.0}
    assert (visible_gpus(), peak_memory(), str(process_group.device())) == (2, 7, "cuda:1")
    assert of_step(step, ranks=1)["speed/mfu_4N"] > 0
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert visible_gpus() == 0 and peak_memory() > 1e6 and str(process_group.device()) == "cpu"
    assert "speed/mfu_4N" not in of_step(step, ranks=1)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
    ],
)
def test_the_share_of_what_gpus_can_do(gpus: Callable, name: str, peak: int) -> None:
    gpus("get_device_name", lambda: name)
    shown = of_step(STEP | {"step_seconds": 2.0, "flops": 3e15}, ranks=4)
    assert shown["speed/tflops_4N"] == pytest.approx(1500)
    assert shown["speed/mfu_4N"] == pytest.approx(1500 / (4 * peak))


def test_what_a_slice_of_a_gpu_can_do_nobody_has_said(gpus: Callable) -> None:
    gpus("get_device_name", lambda: "NVIDIA A100-SXM4-40GB MIG 1g.5gb")
    assert "speed/mfu_4N" not in of_step(STEP | {"step_seconds": 2.0}, ranks=1)


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return small_base("qwen2")


def test_batches_are_as_large_as_the_memory_of_the_device_they_are_on(
    gpus: Callable[[str, object], None], base: PreTrainedModel
) -> None:
    free = {"cuda:0": 1e6, "cuda:1": 64e6}
    gpus("memory_reserved", lambda on: 0)
    gpus("memory_allocated", lambda on: 0)
    gpus("mem_get_info", lambda on: (free[str(on)], 1e9))
    config: Config = config_of("qwen2")
    small, large = (
        memory.largest_forward(config, base, torch.device(name), row_tokens=8, logits=1, written=0) for name in free
    )
    assert large == 64 * small


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_whole_base_is_loaded_onto_the_device_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str, number: int
) -> None:
    """Not onto the current one, nor onto the host first."""
    onto = []

    def load(*_: object, device_map: object, **others: object) -> None:
        onto.append(device_map)
        raise OSError

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", load)
    settings = toy_settings(tmp_path, method="lora")
    settings["model"]["quantization"] = quantization
    configs = [Config.model_validate(settings)] * number
    for device in ("cuda:1", "cpu"):
        with pytest.raises(ConfigError):
            whole_model(configs, label_tokens=[], adapters=[None] * number, device=torch.device(device))
    assert onto == [{"": "cuda:1"}, {"": "cpu"}]


@pytest.mark.parametrize(("local_rank", "seen"), [(1, 1), (4, 4), (7, 2)])
def test_a_rank_without_a_gpu_of_its_number_is_told_so(
    local_rank: int, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As each task of `srun --gpus-per-task=1` sees one, which is number 0 to all of them."""
    accelerator = SimpleNamespace(device_name=lambda: "cuda", device_count=lambda: seen)
    monkeypatch.setattr(forming, "get_accelerator", lambda: accelerator)
    place = Place(local_rank, 8, local_rank, "127.0.0.1", "1", "a test")
    with pytest.raises(HostError, match=f"LOCAL_RANK={local_rank}, but this process sees {seen} GPU") as refused:
        forming._check_device(place)
    assert "--gpus-per-node" in refused.value.fix
    accelerator.device_count = lambda: local_rank + 1
    forming._check_device(place)


def test_a_full_gpu_is_told_with_what_helps(capsys: pytest.CaptureFixture[str]) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    trace, message = described(error)
    assert not trace and "the GPU is out of memory: CUDA out of memory. Tried" in message
    assert end(error, on_every_rank=False) == 1
    assert "train.gradient_checkpointing=true" in capsys.readouterr().err
