"""One rank of the equivalence test: ten real engine steps, and what must be true of the engine meanwhile.

Run as `python -m tests.training.steps_worker CONFIG OUT`; rank 0 writes the losses and the final logits.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

from flare_ds.config import load_config
from flare_ds.data.batching import MicroBatch
from flare_ds.data.collate import collate
from flare_ds.models.partitioned import full_numel, gathered
from flare_ds.training.process_group import rank, world_size
from flare_ds.training.run import open_run
from flare_ds.training.state import adapter_tensors
from flare_ds.training.trainer import Trainer


def frozen_checksum(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            with gathered([parameter]):
                digest.update(parameter.detach().float().numpy().tobytes())
    return digest.hexdigest()


def check_engine(trainer: Trainer) -> None:
    """Sharded base, fp32 adapter, fp32 gradients on the wire and in the sums, only the adapter trains."""
    running, config = trainer.running, trainer.config
    for name, parameter in running.model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        wanted = torch.float32 if parameter.requires_grad else getattr(torch, config.model.dtype)
        assert parameter.dtype == wanted, f"{name} is {parameter.dtype}"
        share = -(-full_numel(parameter) // world_size())
        assert parameter.ds_tensor.numel() == share, f"{name}: {parameter.ds_tensor.numel()} of {share} held"
        if "q_proj.base_layer" in name and world_size() > 1:
            assert parameter.numel() == 0, f"{name} is whole between steps"
    assert running.engine.communication_data_type == torch.float32
    assert running.engine.get_data_types()[1] == torch.float32
    zero = running.engine.optimizer
    assert zero.gradient_accumulation_dtype == torch.float32
    assert {flat.dtype for flat in zero.fp32_partitioned_groups_flat} == {torch.float32}


def main(config_path: str, out: str) -> None:
    config = load_config(config_path)
    cache = open_run(config)
    trainer = Trainer(config, cache)
    before = frozen_checksum(trainer.running.model)
    check_engine(trainer)
    losses = [trainer._step(step)["loss"] for step in range(10)]
    check_engine(trainer)
    assert frozen_checksum(trainer.running.model) == before, "a frozen weight changed"
    rows = MicroBatch(torch.arange(8).numpy(), torch.ones(8).numpy())
    batch = collate(trainer.split, rows, streams=trainer.streams, objective=config.train.objective, pad_id=cache.pad_id)
    trainer.running.engine.eval()
    with torch.no_grad():
        logits = trainer.running.engine(batch)
    tensors = adapter_tensors(trainer.running)
    if rank() == 0:
        norms = {name: tensor.norm().item() for name, tensor in tensors.items()}
        Path(out).write_text(json.dumps({"losses": losses, "logits": logits.flatten().tolist(), "norms": norms}))


if __name__ == "__main__":
    main(*sys.argv[1:])
