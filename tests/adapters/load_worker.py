"""One rank that loads saved adapters into fresh models: sharded over the ranks, or alone in a process of its own.

Run as `python -m tests.adapters.load_worker sharded|alone CONFIG ...`; rank 0 writes what each model says.
"""

import gc
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from flare_ds.adapters.files import check_settings, load_adapter, peft_key
from flare_ds.config import Config
from flare_ds.models.loading import load_shape
from flare_ds.models.two_stream import build_model
from flare_ds.runtime.engine import trainable_parameters
from flare_ds.runtime.opening import open_engine
from flare_ds.runtime.process_group import rank
from flare_ds.settings import load_config
from tests.adapters.adapters import LABEL_TOKENS, a_batch, says


def sharded(config: Config, directory: Path) -> dict[str, torch.Tensor]:
    """Through the engine: the logits, and the adapter as it would be saved again."""
    unset_hf_deepspeed_config()
    engine = open_engine(
        [config],
        shape=load_shape(config.model),
        label_tokens=[*LABEL_TOKENS.values()],
        whole=False,
        adapters=[lambda parameters: load_adapter(directory, parameters)],
    )
    again = {peft_key(name): tensor for name, tensor in engine.tensors("adapter").items()}
    engine.root.eval()
    with torch.no_grad():
        return again | {"logits": engine.root(a_batch(config)).contiguous()}


def alone(config: Config, directory: Path) -> dict[str, torch.Tensor]:
    model = build_model(config, label_tokens=[*LABEL_TOKENS.values()]).eval()
    parameters = trainable_parameters(model)
    for name, tensor in load_adapter(directory, parameters).items():
        parameters[name].data.copy_(tensor)
    return {"logits": says(model, config).contiguous()}


def main(mode: str, *config_paths: str) -> None:
    for path in config_paths:
        config = load_config(path)
        directory = Path(config.run_dir) / "adapter"
        check_settings(directory, config)
        found = sharded(config, directory) if mode == "sharded" else alone(config, directory)
        if rank() == 0:
            save_file(found, Path(path).with_suffix(f".{mode}"))
        gc.collect()  # the engine before goes, with its hooks and shards


if __name__ == "__main__":
    main(*sys.argv[1:])
