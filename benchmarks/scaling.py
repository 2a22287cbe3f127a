"""How time grows with length, batch, layers, ranks and rows: fitted exponents; prints JSON.

    python benchmarks/scaling.py [--factor 4] [--steps 5]

Each size is doubled up to `--factor` times its start while the others stay; `exponents` are the slopes of the
least-squares lines through the logarithms: 1 is proportional. `length`, `batch` and `layers`: the median step of flare
in one process, the points taking turns. `ranks`: the same rows shared among 1 and 2 ranks under the engine (-1 would be
perfect, where there is a core for each). `rows`: building a token cache, with one worker. Exponents, unlike seconds,
bear a busy machine, as long as it is evenly busy.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from host_time import timed
from step_cost import WARM_UP, Training
from workload import make_config, method_batch, run_ranks, write_model
from world import pairs_config, word_tokenizer

from flare_ds.data.cache import prepare_cache
from flare_ds.runtime.joining import join_process_group
from flare_ds.runtime.process_group import barrier, rank

START = {"length": 32, "batch": 2, "layers": 2}
WIDTH, VOCABULARY, RANKED_BATCH = 128, 512, 8


def exponent(points: dict[int, float]) -> float:
    """The slope through the logarithms of sizes and times."""
    slope, _ = np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)
    return float(slope)


def doubled(start: int, factor: int) -> list[int]:
    """A size, twice that, and so on, to so many times the first."""
    return [start << power for power in range(factor.bit_length())]


def seconds_of(sizes: Sequence[dict[str, int]], directory: Path, steps: int) -> list[float]:
    """The median step of each of some sizes, in turn."""
    trainings = []
    for size in sizes:
        base = write_model(directory / str(size["layers"]), layers=size["layers"], width=WIDTH, vocabulary=VOCABULARY)
        config = make_config(base, method="flare", batch=size["batch"], form={})
        batch = method_batch(config, vocabulary=VOCABULARY, rows=size["batch"], length=size["length"])
        trainings.append((Training("flare", config, engine=False), batch))
    rounds = [[timed(training, batch) for training, batch in trainings] for _ in range(WARM_UP + steps)]
    return [statistics.median(times) for times in zip(*rounds[WARM_UP:], strict=True)]


def of_sizes(directory: Path, factor: int, steps: int) -> dict[str, dict[int, float]]:
    """By length, batch and layers."""
    found = {}
    for name, start in START.items():
        values = doubled(start, factor)
        found[name] = dict(
            zip(values, seconds_of([START | {name: value} for value in values], directory, steps), strict=True)
        )
    return found


def of_rows(directory: Path, factor: int) -> dict[int, float]:
    """Seconds to build a cache."""
    found = {}
    for rows in doubled(1000, factor):
        config = pairs_config(directory / str(rows), method="lora", data_dir=str(rows))
        began = time.perf_counter()
        prepare_cache(config, word_tokenizer(), workers=1)
        found[rows] = time.perf_counter() - began
    return found


def worker(base: str, steps: str, ranks: str, out: str) -> None:
    """One rank of some: its share of the rows."""
    join_process_group()
    rows = RANKED_BATCH // int(ranks)
    config = make_config(Path(base), method="flare", batch=rows, form={})
    training = Training("flare", config, engine=True)
    batch = method_batch(config, vocabulary=VOCABULARY, rows=rows, length=START["length"])
    times = []
    for _ in range(WARM_UP + int(steps)):
        barrier()
        times.append(timed(training, batch))
    if rank() == 0:
        Path(out).write_text(json.dumps(statistics.median(times[WARM_UP:])))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factor", type=int, default=4, help="the largest size over the smallest")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each point")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        points: dict[str, dict[int, float]] = of_sizes(directory / "sizes", given.factor, given.steps)
        base = str(write_model(directory / "base", layers=4, width=WIDTH, vocabulary=VOCABULARY))
        points["ranks"] = {
            ranks: run_ranks(__file__, ["--worker", base, str(given.steps), str(ranks)], ranks) for ranks in (1, 2)
        }
        points["rows"] = of_rows(directory / "rows", given.factor)
    found: dict[str, Any] = {"seconds": points, "exponents": {name: exponent(of) for name, of in points.items()}}
    print(json.dumps(vars(given) | found, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        main()
