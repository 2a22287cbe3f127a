"""Merging the task adapter into its base: W + (α/r)·B·A, one weight file at a time, straight from disk to disk.

Nothing is loaded but one safetensors file and the adapter, so the base may be larger than memory. Sums are made in
fp32 and rounded once to the base's precision. The result is a model directory like any other.
"""

import json
import shutil
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from flare_ds.adapters.files import SETTINGS, WEIGHTS
from flare_ds.adapters.variant import merge_refused
from flare_ds.config import Config
from flare_ds.exceptions import CheckpointError
from flare_ds.files import disk_errors, write_json

_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def merge_run(config: Config, output: Path) -> Path:
    """Write the run's base with its task adapter merged in.

    Args:
        config: of a finished run with method lora.
        output: the new model directory; must not exist.

    Raises:
        CheckpointError: the run fuses, its adapter is missing, an adapter matrix has no counterpart in the base's
            files, or `output` exists.
    """
    if config.method != "lora":
        raise merge_refused()
    if output.exists():
        raise CheckpointError(f"{output} exists already", fix="choose another --output, or delete it")
    base = _base_directory(config.model.base)
    updates = _updates(Path(config.run_dir) / "adapter")
    partial = output.with_name(f".{output.name}.partial")
    with disk_errors(output):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_weights(base, partial, updates)
        for file in base.iterdir():
            if file.is_file() and file.suffix != ".safetensors":
                shutil.copy2(file, partial / file.name)
        write_json(partial / "merged_from.json", {"base": config.model.base, "run": config.run_dir})
        partial.rename(output)
    return output


def _base_directory(base: str) -> Path:
    directory = Path(base) if Path(base).is_dir() else Path(snapshot_download(base))
    if not list(directory.glob("*.safetensors")):
        raise CheckpointError(f"{directory} holds no .safetensors files", fix="save the base with save_pretrained")
    return directory


def _updates(adapter: Path) -> dict[str, Tensor]:
    """(α/r)·B·A of each adapted weight, by its name in the base."""
    try:
        settings = json.loads((adapter / SETTINGS).read_text(encoding="utf-8"))
        matrices = load_file(adapter / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the task adapter {adapter}: {error}", fix="train the run first") from error
    scaling = settings["lora_alpha"] / settings["r"]
    names = [key.removesuffix(_DOWN) for key in matrices if key.endswith(_DOWN)]
    return {
        name.removeprefix(_PREFIX) + ".weight": scaling * (matrices[name + _UP] @ matrices[name + _DOWN])
        for name in names
    }


def _write_weights(base: Path, output: Path, updates: dict[str, Tensor]) -> None:
    left = dict(updates)
    for file in tqdm(sorted(base.glob("*.safetensors")), desc="merge", unit="file"):
        with safe_open(file, framework="pt") as weights:
            metadata = weights.metadata()
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 - not a dict
        for name in tensors.keys() & left.keys():
            tensors[name] = (tensors[name].to(torch.float32) + left.pop(name)).to(tensors[name].dtype)
        save_file(tensors, output / file.name, metadata=metadata)
    if left:
        raise CheckpointError(
            f"{len(left)} adapter matrices match no weight of the base, first {min(left)!r}",
            fix="merge into the base the adapter was trained on",
        )
