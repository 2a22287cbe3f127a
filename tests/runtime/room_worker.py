"""One rank that opens sharded models one after another: `python -m tests.runtime.room_worker OUT CONFIG...`.

Each run is trained and scored, and scored again in a model that was only ever asked; then all of it once more, in
another directory, while a model that was opened before is held and trains on. Rank 0 writes, of each time, the scores
and which models' frozen weights were still there behind `make_room`; and the losses of the one that was held.
"""

import json
import sys
from pathlib import Path
from typing import Any
from weakref import ref

import deepspeed
from torch import Tensor

from flare_ds.config import Config
from flare_ds.evaluation.evaluate import evaluate_run
from flare_ds.runtime.engine import make_room
from flare_ds.runtime.process_group import rank
from flare_ds.settings import load_config
from flare_ds.training.run import open_run
from flare_ds.training.together import train_together
from tests.training.alone import Trainer

shares: list[ref[Tensor]] = []
"""Of a frozen weight of each model that DeepSpeed was given."""
_FROZEN = "mlp.up_proj."


def watch() -> None:
    initialize = deepspeed.initialize

    def noted(*, model: Any, **given: Any) -> Any:
        shares.append(ref(next(p.ds_tensor for n, p in model.named_parameters() if _FROZEN in n and "lora" not in n)))
        return initialize(model=model, **given)

    deepspeed.initialize = noted


def in_directory(config: Config, name: str) -> Config:
    return config.model_copy(update={"run_dir": f"{config.run_dir}-{name}"})


def run(config: Config) -> dict[str, Any]:
    before = len(shares)
    train_together([(config, open_run(config, train=True))], evaluate=True)
    make_room()
    scores = evaluate_run(config, open_run(config, train=False)).score
    make_room()
    log = (Path(config.run_dir) / "train_log.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, log) if "loss" in line] if rank() == 0 else None
    there = [share() is not None for share in shares[before:]]
    return {"losses": losses, "score": scores, "there": there}


def main(out: str, *paths: str) -> None:
    watch()
    configs = [load_config(path) for path in paths]
    found = [run(in_directory(config, "first")) for config in configs]
    held_config = in_directory(configs[0], "held")
    held = Trainer(held_config, open_run(held_config, train=True))
    losses = [held.step(0)["loss"]]
    make_room()
    found += [run(in_directory(config, "second")) for config in configs]
    losses.append(held.step(1)["loss"])
    del held
    make_room()
    there = [share() is not None for share in shares]
    if rank() == 0:
        Path(out).write_text(json.dumps({"runs": found, "held": losses, "there": there}))


if __name__ == "__main__":
    main(*sys.argv[1:])
