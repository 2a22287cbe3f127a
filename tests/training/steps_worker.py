"""One rank of the equivalence tests: ten real engine steps, and what must be true of the engine meanwhile.

Run as `python -m tests.training.steps_worker CONFIG`; rank 0 writes losses, final logits and the trained
parameters' names to CONFIG with the suffix `.json`.
"""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from flare_ds.batches.batching import MicroBatch
from flare_ds.batches.collate import collate
from flare_ds.config import Config
from flare_ds.models.partitioned import full_numel, gathered
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.runtime.process_group import rank, world_size
from flare_ds.settings import load_config
from flare_ds.training.run import open_run
from flare_ds.training.state import save_state
from tests.training.alone import Trainer

STEPS = 10
DELAY = 0.2  # seconds


class SeenGathers(TorchDispatchMode):
    """What torch's dispatcher sees of all-gathers, whoever calls them."""

    calls = bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "allgather" in func._schema.name:
            self.calls += 1
            self.bytes += sum(leaf.nbytes for leaf in tree_leaves(args[0]) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


def frozen_checksum(model: TwoStreamModel) -> str:
    """Of every frozen parameter, and of the embedding's table, which is no longer a parameter."""
    assert model.host_rows is not None
    digest = hashlib.sha256(model.host_rows.table_VD.float().numpy().tobytes())
    for _, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            with gathered([parameter]):
                digest.update(parameter.detach().float().numpy().tobytes())
    return digest.hexdigest()


def is_trained(name: str, config: Config) -> bool:
    head = config.adapter.train_head and name.endswith(".lm_head.weight")
    return "lora_" in name or name.startswith("mixing.") or head


def check_engine(trainer: Trainer) -> None:
    """Sharded base, fp32 adapter, fp32 gradients on the wire and in the sums, only the adapter trains."""
    running, config = trainer.engine, trainer.config
    for name, parameter in running.model.named_parameters():
        assert parameter.requires_grad == is_trained(name, config), name
        wanted = torch.float32 if parameter.requires_grad else getattr(torch, config.model.dtype)
        assert parameter.dtype == wanted, f"{name} is {parameter.dtype}"
        share = -(-full_numel(parameter) // world_size())
        assert parameter.ds_tensor.numel() == share, f"{name}: {parameter.ds_tensor.numel()} of {share} held"
        if "q_proj.base_layer" in name and world_size() > 1:
            assert parameter.numel() == 0, f"{name} is whole between steps"
    assert running.root.communication_data_type == torch.float32
    assert running.root.get_data_types()[1] == torch.float32
    zero = running.root.optimizer
    assert zero.gradient_accumulation_dtype == torch.float32
    assert {flat.dtype for flat in zero.fp32_partitioned_groups_flat} == {torch.float32}


def check_resume(trainer: Trainer, tensors: dict[str, Tensor]) -> None:
    """A state saved now and opened again has the same adapter, and goes on with the same losses, bit for bit."""
    trainer.progress.step = STEPS
    save_state(trainer.state_path, trainer.engine, trainer.progress)
    unset_hf_deepspeed_config()  # as in a new process
    again = Trainer(trainer.config, trainer.cache)
    assert again.progress.step == STEPS
    restored = again.engine.tensors("adapter")
    assert restored.keys() == tensors.keys()
    assert all(torch.equal(restored[name], tensors[name]) for name in tensors)
    for step in range(STEPS, STEPS + 2):
        assert again.step(step)["loss"] == trainer.step(step)["loss"], f"step {step} after a resume"


def run(config: Config) -> dict:
    """Ten steps of one config, checked; what the test compares."""
    cache = open_run(config, train=True)
    trainer = Trainer(config, cache)
    model = trainer.engine.model
    before, fresh = frozen_checksum(model), trainer.engine.tensors("adapter")
    check_engine(trainer)
    steps = [trainer.step(step) for step in range(STEPS - 1)]
    slow = model.register_forward_hook(lambda *_: time.sleep(DELAY))
    with SeenGathers() as seen:
        steps.append(trainer.step(STEPS - 1))
    slow.remove()
    assert steps[-1]["forward_seconds"] >= DELAY
    trainer.progress.skipped = sum("skipped_rows" in step for step in steps)
    micro_steps = trainer.engine.root.micro_steps / STEPS
    check_engine(trainer)
    assert frozen_checksum(model) == before, "a frozen weight changed"
    tensors = trainer.engine.tensors("adapter")
    # Without weight decay AdamW moves a matrix only where it got a gradient.
    still = [name for name, tensor in tensors.items() if torch.equal(tensor, fresh[name])]
    assert not still, f"no gradient reached {still}"
    rows = MicroBatch(torch.arange(8).numpy(), torch.ones(8).numpy())
    batch = collate(
        trainer.feed.split, rows, streams=trainer.feed.streams, objective=config.train.objective, pad_id=cache.pad_id
    )
    trainer.engine.root.eval()
    with torch.no_grad():
        logits = trainer.engine.root(batch)
    if config.adapter.train_head or config.recipe.fuses == "mixup":
        check_resume(trainer, tensors)
    return {
        "losses": [step["loss"] for step in steps],
        "grad_norms": [step["grad_norm"] for step in steps],
        "logits": logits.flatten().tolist(),
        "trained": sorted(tensors),
        "micro_steps": micro_steps,
        "gathered": [steps[-1]["gathers"], steps[-1]["gathered_bytes"]],
        "seen": [seen.calls, seen.bytes],
    }


def main(config_path: str) -> None:
    found = run(load_config(config_path))
    if rank() == 0:
        Path(config_path).with_suffix(".json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
