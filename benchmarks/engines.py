"""What a whole base on every rank saves: seconds of a training step against ZeRO-3's, on the same rows.

    python benchmarks/engines.py [--ranks N] [--steps N] [--rounds N] [--batch N] [--length N] [--layers N] [--width N]

A random Llama trains by flare, in turns under each of the two engines, each turn in processes of its own. Seconds are
medians over all steps but the first two of each turn; of a busy machine only their ratio says something. Losses of
both are printed, and are the same.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from workload import REPOSITORY, make_batch, make_config, run_ranks, write_model

from flare_ds.models.loading import load_shape
from flare_ds.runtime.joining import join_if_launched
from flare_ds.runtime.opening import open_engine
from flare_ds.runtime.process_group import rank, world_size

ENGINES = ("whole", "sharded")
VOCABULARY, WARM_UP = 1024, 2


def worker(engine: str, model: str, steps: str, batch: str, length: str, out: str) -> None:
    """Train on one rank; rank 0 writes seconds and losses of the steps."""
    join_if_launched()
    deepspeed = REPOSITORY / "ds_configs/zero3_fp32_cpu.json"
    config = make_config(Path(model), method="flare", batch=int(batch), deepspeed=deepspeed)
    running = open_engine([config], shape=load_shape(config.model), label_tokens=[], whole=engine == "whole")
    rows = make_batch(VOCABULARY, rows=int(batch), length=int(length))
    running.root.train()
    seconds, losses = [], []
    for _ in range(int(steps) + WARM_UP):
        start = time.perf_counter()
        loss = running.accumulate(rows, targets=[int(batch) * world_size()], last=True)
        running.step({0: config.train.learning_rate})
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    if rank() == 0:
        Path(out).write_text(json.dumps({"seconds": seconds[WARM_UP:], "losses": losses}))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both engines in turns."""
    seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    losses = {}
    with tempfile.TemporaryDirectory() as directory:
        model = write_model(Path(directory), layers=options.layers, width=options.width, vocabulary=VOCABULARY)
        for _ in range(options.rounds):
            for engine in ENGINES:
                sizes = map(str, (options.steps, options.batch, options.length))
                found = run_ranks(__file__, ["--worker", engine, str(model), *sizes], ranks=options.ranks)
                seconds[engine] += found["seconds"]
                losses[engine] = found["losses"]
    medians = {engine: statistics.median(found) for engine, found in seconds.items()}
    return {"seconds": medians, "whole/sharded": medians["whole"] / medians["sharded"], "losses": losses}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"ranks": 2, "steps": 10, "rounds": 3, "batch": 4, "length": 64, "layers": 4, "width": 128}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"(default {size})")
    options = parser.parse_args()
    print(json.dumps({**vars(options), **measure(options)}, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        main()
