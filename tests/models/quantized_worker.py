"""One rank of the quantised runs: a few real engine steps on each kind of base, and what must be true meanwhile.

Run as `python -m tests.models.quantized_worker DIRECTORY`; each rank writes `DIRECTORY/RANK.json`.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import nn

from flare_ds.config import Config
from flare_ds.models.loading import load_shape
from flare_ds.models.partitioned import full_numel, gathered
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.runtime.joining import join_process_group
from flare_ds.runtime.opening import open_engine
from flare_ds.runtime.process_group import gather_objects, rank, world_size
from tests.by_hand import make_batch, make_config, make_rows
from tests.toy import REPOSITORY

STEPS = 4
KINDS = [("nf4", "float32"), ("int8", "float32"), ("nf4", "bfloat16"), ("int8", "bfloat16")]
SHARDED = KINDS[:3]


def quantized_config(
    base: Path, quantization: str, dtype: str, *, method: str = "flare", checkpointing: bool = False
) -> Config:
    """Fused q_proj and v_proj; r so small that ZeRO-3 also partitions the smallest quantised weight."""
    config = make_config(method=method, pairing="output", r=2, alpha=4, checkpointing=checkpointing)
    model = {"base": str(base), "dtype": dtype, "quantization": quantization}
    ds_config = REPOSITORY / "ds_configs" / ("zero3_cpu.json" if dtype == "bfloat16" else "zero3_fp32_cpu.json")
    train = {"steps": STEPS, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 0.01, "objective": "vocabulary"}
    train["gradient_checkpointing"] = checkpointing
    return Config.model_validate(config.model_dump() | {"model": model, "deepspeed": str(ds_config), "train": train})


def frozen_checksum(model: nn.Module) -> str:
    """Of the stored codes, bit by bit, not of the numbers they stand for."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            with gathered([parameter]):
                digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_sharded(model: TwoStreamModel) -> None:
    """Each rank holds its share of every weight and, between steps, nothing else."""
    for name, parameter in model.named_parameters():
        share = -(-full_numel(parameter) // world_size())
        assert parameter.ds_tensor.numel() == share, f"{name}: {parameter.ds_tensor.numel()} elements, not {share}"
        if name.endswith("proj.base_layer.weight"):
            assert parameter.numel() == 0, f"{name} is whole between steps"
            for reference in ("CB", "SCB", "quant_state"):
                assert getattr(parameter, reference, None) is None, f"bitsandbytes keeps {name} whole"
        assert parameter.requires_grad == ("lora_" in name), name
        assert not parameter.requires_grad or parameter.dtype == torch.float32, name


def train(config: Config, *, whole: bool) -> dict[str, object]:
    engine = open_engine([config], shape=load_shape(config.model), label_tokens=[], whole=whole)
    if not whole:
        check_sharded(engine.model)
    before = frozen_checksum(engine.model)
    rows = make_rows()
    batch = make_batch(rows[rank() :: world_size()], config)
    everybody = sum(len(row.answer) for row in rows)
    losses = []
    engine.root.train()
    for _ in range(STEPS):
        loss = engine.accumulate(batch, targets=[everybody], last=True)
        assert engine.step({0: config.train.learning_rate})[0] is not None
        losses.append(sum(gather_objects(loss.item())) / everybody)
    if not whole:
        check_sharded(engine.model)
    assert frozen_checksum(engine.model) == before, "a frozen weight changed"
    return {"losses": losses, "checksum": before}


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    join_process_group()
    kinds = {
        f"{held}-{q}-{d}": train(quantized_config(directory / "model", q, d), whole=held == "whole")
        for held in ("whole", "sharded")  # in this order: transformers shards while a sharded model is open
        for q, d in SHARDED
    }
    (directory / f"{rank()}.json").write_text(json.dumps(kinds))
