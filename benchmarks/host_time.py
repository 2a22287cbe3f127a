"""Seconds Python takes to drive a decoder layer through a training step of flare; prints JSON.

    python benchmarks/host_time.py [--steps 10]

On a base so narrow that its arithmetic takes no time, in one process: two models of different depth, whose steps differ
by the layers between them. `plain`: the whole model, no engine; `hooked`: under DeepSpeed ZeRO-3, which hooks every
module. A GPU does not shorten this. `modules_a_layer`: how many a layer calls. `simulate_cluster.py` reads them.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from step_cost import WARM_UP, Training
from torch.nn.modules.module import register_module_forward_pre_hook
from workload import make_config, method_batch, run_ranks, write_model

from flare_ds.runtime.joining import join_process_group

DEPTHS = (2, 10)
WIDTH, VOCABULARY, ROWS, LENGTH = 16, 64, 1, 4


def measure(directory: Path, steps: int, engine: bool) -> dict[str, float]:
    """What a layer adds to the median step, and to the modules that are called."""
    seconds, modules = [], []
    for depth in DEPTHS:
        config = make_config(directory / str(depth), method="flare", batch=ROWS, form={})
        training = Training("flare", config, engine=engine)
        batch = method_batch(config, vocabulary=VOCABULARY, rows=ROWS, length=LENGTH)
        seconds.append(statistics.median(timed(training, batch) for _ in range(WARM_UP + steps)))
        modules.append(calls(training, batch))
    layers = DEPTHS[1] - DEPTHS[0]
    return {
        "seconds_a_layer": (seconds[1] - seconds[0]) / layers,
        "modules_a_layer": (modules[1] - modules[0]) / layers,
    }


def timed(training: Training, batch: Any) -> float:
    """Seconds of a step."""
    start = time.perf_counter()
    training.step(batch)
    return time.perf_counter() - start


def calls(training: Training, batch: Any) -> int:
    """Modules called in a step."""
    called: list[None] = []
    hook = register_module_forward_pre_hook(lambda *_: called.append(None))
    training.step(batch)
    hook.remove()
    return len(called)


def worker(directory: str, steps: str, engine: str, out: str) -> None:
    """One way, in a process of its own."""
    if engine == "hooked":
        join_process_group()
    Path(out).write_text(json.dumps(measure(Path(directory), int(steps), engine == "hooked")))


def main() -> None:
    """Measure both ways and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    steps = str(parser.parse_args().steps)
    with tempfile.TemporaryDirectory() as directory:
        for depth in DEPTHS:
            write_model(Path(directory, str(depth)), layers=depth, width=WIDTH, vocabulary=VOCABULARY)
        found = {
            name: run_ranks(__file__, ["--worker", directory, steps, name], ranks)
            for name, ranks in (("plain", 0), ("hooked", 1))
        }
    ratio = found["hooked"]["seconds_a_layer"] / found["plain"]["seconds_a_layer"]
    print(json.dumps(found | {"ratios": {"hooked/plain": ratio}}, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        main()
