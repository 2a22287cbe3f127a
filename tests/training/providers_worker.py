"""One rank of the provider tests: several runs after another, each trained a few steps, broken off and continued.

Run as `python -m tests.training.providers_worker OUT CONFIG ...`; rank 0 writes what each run gave.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch

from flare_ds.adapters.files import load_adapter, save_adapter
from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.split import score_split
from flare_ds.exceptions import ConfigError
from flare_ds.models.mt_encoder import MTEncoder
from flare_ds.models.partitioned import full_numel
from flare_ds.runtime.engine import count_trainable
from flare_ds.runtime.joining import join_process_group
from flare_ds.runtime.process_group import barrier, gather_objects, rank, world_size
from flare_ds.settings import load_config
from flare_ds.training.run import open_run
from flare_ds.training.state import save_state
from tests.training.alone import Trainer

STEPS, SAVED = 6, 3
encoded = 0


def count_encoded_texts() -> None:
    """Let every text that the MT encoder reads be counted."""
    states = MTEncoder.states

    def counting(self: MTEncoder, texts: list[list[int]]) -> list[torch.Tensor]:
        global encoded
        encoded += len(texts)
        return states(self, texts)

    MTEncoder.states = counting


def check_projection(trainer: Trainer) -> None:
    """It is fp32, sharded and trained."""
    projection = trainer.engine.model.projection
    assert projection is not None
    for parameter in projection.parameters():
        assert parameter.requires_grad and parameter.dtype == torch.float32
        assert parameter.ds_tensor.numel() == -(-full_numel(parameter) // world_size())


def check_adapter_files(trainer: Trainer, tensors: dict[str, torch.Tensor]) -> None:
    """What is saved comes back under the same names."""
    directory = Path(trainer.config.run_dir) / "adapter"
    if rank() == 0:
        label_tokens = dict(zip(trainer.cache.labels, trainer.cache.label_tokens, strict=True))
        model = trainer.engine.model.peft_model
        save_adapter(directory, tensors, model, trainer.config, label_tokens=label_tokens, validation={})
    barrier()
    loaded = load_adapter(directory, trainer.running.model.trained())
    if rank() == 0:
        assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def run(config: Config, cache: Cache) -> dict[str, Any]:
    encoded_before = encoded
    trainer = Trainer(config, cache)
    encoded_at_start = sum(gather_objects(encoded - encoded_before))
    if config.reads_mt_encoder:
        check_projection(trainer)
    losses = []
    for step in range(STEPS):
        losses.append(trainer.step(step)["loss"])
        if step + 1 == SAVED:
            trainer.progress.step = SAVED
            save_state(trainer.state_path, trainer.engine, trainer.progress)
    tensors = trainer.engine.tensors("adapter")
    check_adapter_files(trainer, tensors)
    scores = score_split(Asked(trainer.running, cache, config, trainer.states), "test")
    trained = count_trainable(trainer.engine.model)
    del trainer
    gc.collect()
    return {
        "losses": losses,
        "scores": [
            [value for name, value in record.items() if name.startswith("log_probability_")]
            for record in scores.records
        ],
        "projection": {name: tensor.tolist() for name, tensor in tensors.items() if "projection" in name},
        "trained": trained,
        "encoded_at_start": encoded_at_start,
        "continued": continue_run(config, cache) if config.reads_mt_encoder else None,
        "encoded_in_all": sum(gather_objects(encoded - encoded_before)),
    }


def continue_run(config: Config, cache: Cache) -> list[float]:
    """Losses of the steps behind the saved state."""
    trainer = Trainer(config, cache)
    assert trainer.progress.step == SAVED
    return [trainer.step(step)["loss"] for step in range(SAVED, STEPS)]


def refusals(config: Config, cache: Cache) -> list[str]:
    """What each rank says of two impossible settings."""
    found = []
    for setting in ({"max_store_gb": 1e-6}, {"mt_language": "pol_latn"}):
        wrong = config.model_copy(update={"source": config.source.model_copy(update=setting)})
        store_of_its_own = wrong.model_copy(update={"cache_dir": config.run_dir})
        try:
            Trainer(store_of_its_own, cache)
        except ConfigError as error:
            found += gather_objects(str(error))
    return found


def main(out: str, *config_paths: str) -> None:
    join_process_group()
    count_encoded_texts()
    results: dict[str, Any] = {}
    for path in config_paths:
        config = load_config(path)
        cache = open_run(config, train=True)
        results[Path(config.run_dir).name] = run(config, cache)
        gc.collect()
    results["refusals"] = refusals(config, cache)
    if rank() == 0:
        Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
