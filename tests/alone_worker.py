"""A rank of somebody else's group that loads a run for itself: `alone_worker YAML OUT`.

It asks about texts of its own, as many as its number says, and writes what it was told to OUT/RANK.json.
"""

import json
import sys
from pathlib import Path
from threading import Thread

import torch.distributed as dist

import flare_ds
from tests.toy import FILLER


def texts_of(rank: int) -> list[str]:
    """What a rank asks."""
    return [f"{FILLER[rank]} {word}" for word in FILLER[: 3 - rank]]


def said(config: str, run_dir: Path, texts: list[str]) -> dict:
    """What a process is told of some texts."""
    model = flare_ds.load(config, device="cpu", overrides=[f"run_dir={run_dir}", "generate.max_new_tokens=3"])
    found: dict = {}

    def ask() -> None:
        found["labels"] = [of_row.label for of_row in model.label(texts)]

    asking = Thread(target=ask)  # as a service asks; whatever the main thread has entered does not hold there
    asking.start()
    asking.join()
    written = [answer.text for answer in model.generate(texts)]
    return found | {"run": model._predictor.config.run_dir, "scores": model.scores(texts).tolist(), "written": written}


def main(config: str, out: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    (out / f"{rank}.json").write_text(json.dumps(said(config, out / f"run{rank}", texts_of(rank))))
    dist.barrier()
    assert (dist.get_rank(), dist.get_world_size()) == (rank, 2)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
