"""Cells that train together against single jobs: seconds a cell and step, and what is gathered; prints JSON.

K flare cells of K target languages, whose source rows are the same, in one job; and single jobs of flare and lora.
Each is started anew in every round, in turns, so that what else the machine does meets all alike. With several ranks
these share the base (ZeRO-3), and the elements gathered in a step are counted; alone a rank holds it.

    python benchmarks/together.py
    python benchmarks/together.py --ranks 2 --model MODEL --batch 16 --length 40
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig
from workload import RandomRows, make_config, run_ranks, write_model

from flare_ds.batches.batching import MicroBatch
from flare_ds.batches.collate import Batch, collate
from flare_ds.batches.joined import join
from flare_ds.batches.workload import streams_of
from flare_ds.config import Config
from flare_ds.models.loading import load_shape
from flare_ds.runtime.gathers import gathers
from flare_ds.runtime.joining import join_if_launched
from flare_ds.runtime.opening import open_engine
from flare_ds.runtime.process_group import rank, world_size

WARM_UP = 2


class LanguageRows(RandomRows):
    """Rows of random tokens in one of several target languages; the sources are the same in all."""

    def __init__(self, language: int, *, vocabulary: int, rows: int, length: int) -> None:
        super().__init__(vocabulary=vocabulary, rows=rows, length=length)
        draw = np.random.default_rng(language + 1)
        self._prompts["target"] = draw.integers(2, vocabulary, (rows, length))


def batches_of(config: Config, rows: LanguageRows, size: int) -> list[Batch]:
    """All of them as the config's method reads them, so many at once."""
    parts = [np.arange(first, min(first + size, len(rows))) for first in range(0, len(rows), size)]
    micro_batches = [MicroBatch(part, np.ones(len(part), np.float32)) for part in parts]
    how: dict[str, Any] = {"streams": streams_of(config), "objective": "vocabulary", "pad_id": 0}
    return [collate(rows, micro_batch, **how) for micro_batch in micro_batches]


def worker(method: str, cells: str, given: str, out: str) -> None:
    """Train on one rank; rank 0 writes what the steps took."""
    join_if_launched()
    sizes, number = json.loads(given), int(cells)
    config = make_config(Path(sizes["model"]), method=method, batch=sizes["batch"], dtype=sizes["dtype"])
    engine = open_engine(
        [config] * number,
        shape=load_shape(config.model),
        label_tokens=[],
        whole=world_size() == 1,
        adapters=[None] * number,
    )
    vocabulary = AutoConfig.from_pretrained(sizes["model"]).get_text_config().vocab_size
    shape = {"vocabulary": vocabulary, "rows": sizes["batch"], "length": sizes["length"]}
    size = max(1, (sizes["micro_batch"] or sizes["batch"]) // (number if sizes["cut"] else 1))
    of_cells = [batches_of(config, LanguageRows(cell, **shape), size) for cell in range(number)]
    methods = dict.fromkeys(range(number), config.recipe)
    joined = [
        join(dict(enumerate(parts)), methods) if number > 1 else parts[0] for parts in zip(*of_cells, strict=True)
    ]
    engine.root.train()
    seconds, losses, gathered = [], [], 0
    targets = sum(int((batch.answers_BN >= 0).sum()) for batch in of_cells[0]) * world_size()
    for step in range(sizes["steps"] + WARM_UP):
        before, start = gathers()["gathered_elements"], time.perf_counter()
        for place, rows in enumerate(joined, 1):
            loss = engine.accumulate(rows.to(engine.device), targets=[targets] * number, last=place == len(joined))
        engine.step(dict.fromkeys(range(number), config.train.learning_rate))
        losses.append(loss.tolist())
        seconds.append((time.perf_counter() - start) / number)
        gathered = gathers()["gathered_elements"] - before if step else gathered
    if rank() == 0:
        found = {"seconds": seconds[WARM_UP:], "loss": losses[-1][0], "gathered": gathered}
        Path(out).write_text(json.dumps(found))


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All variants in turns."""
    variants = {"lora": ("lora", 1), **{f"flare x {number}": ("flare", number) for number in given.cells}}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as directory:
        if given.model is None:
            write_model(Path(directory), layers=given.layers, width=given.width, vocabulary=1024)
        sizes = vars(given) | {"model": given.model or directory}
        for _ in range(given.rounds):
            for name, (method, cells) in variants.items():
                arguments = ["--worker", method, str(cells), json.dumps(sizes)]
                found[name] = run_ranks(__file__, arguments, ranks=given.ranks)
                seconds[name] += found[name]["seconds"]
    medians = {name: statistics.median(of_steps) for name, of_steps in seconds.items()}
    return {
        name: {
            "seconds_a_cell_and_step": median,
            "over_flare_alone": median / medians["flare x 1"],
            "over_lora_alone": median / medians["lora"],
            "gathered_a_step": found[name]["gathered"],
            "loss_of_the_first": found[name]["loss"],
        }
        for name, median in medians.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory of a saved model (default: a small random one)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--cut", action="store_true", help="cells together share the rows of a micro-batch")
    parser.add_argument("--cells", type=int, nargs="+", default=[1, 2, 4], help="with 1 among them (default 1 2 4)")
    sizes = {
        "ranks": 1,
        "steps": 10,
        "rounds": 3,
        "batch": 8,
        "micro_batch": 0,
        "length": 40,
        "layers": 4,
        "width": 128,
    }
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"(default {size})")
    given = parser.parse_args()
    shown = vars(given) | {"model": Path(given.model or "a small random Llama").name}
    print(json.dumps({**shown, "variants": measure(given)}, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        main()
