"""`model.dtype: auto` is what the machine multiplies, and a run keeps what it began with."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from flare_ds.config import ModelConfig, data
from flare_ds.precision import native_dtype
from flare_ds.settings import load_config
from tests.toy import toy_settings


@pytest.mark.parametrize(
    ("accelerator", "cuda", "gpu", "cpu", "expected"),
    [
        ("cpu", True, True, False, "float32"),
        ("cpu", True, False, True, "bfloat16"),
        ("", True, True, False, "bfloat16"),
        ("cuda", True, False, True, "float32"),
        ("", False, True, False, "float32"),
        ("", False, False, True, "bfloat16"),
    ],
)
def test_it_is_asked_of_the_device_that_computes(
    accelerator: str, cuda: bool, gpu: bool, cpu: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", accelerator)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu and not including_emulation)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: cpu)
    assert native_dtype() == expected


def test_torch_agrees_with_the_kernel_about_this_cpu() -> None:
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    if not {"avx512_bf16", "amx_bf16", "avx2"} & set(flags):
        pytest.skip("the kernel's names of this CPU's instructions are not known here")
    if "avx512_bf16" in flags or "amx_bf16" in flags:
        assert torch.ops.mkldnn._is_mkldnn_bf16_supported()
    elif "avx512bw" not in flags:
        assert not torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize("native", ["bfloat16", "float32"])
def test_a_config_says_which(native: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = toy_settings(tmp_path, steps=1)
    del given["model"]["dtype"], given["deepspeed"]
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(given))
    monkeypatch.setattr(data, "native_dtype", lambda: native)
    assert load_config(path).model.dtype == native
    assert load_config(path, ["model.dtype=float32"]).model.dtype == "float32"
    assert f"dtype: {native}" in load_config(path).to_yaml()
    assert ModelConfig(base="m").dtype == ModelConfig(base="m", dtype="auto").dtype == native


def test_torch_is_not_imported_where_the_precision_is_given(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(toy_settings(tmp_path, steps=1)))
    code = f"from flare_ds.settings import load_config; load_config({str(path)!r})"
    code = f"import sys; {code}; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
