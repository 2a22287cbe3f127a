"""A sweep whose cells train together against the same sweep cell by cell, from command to report; prints JSON.

    python benchmarks/sweep_time.py [--cells 8] [--rounds 1]
    python benchmarks/sweep_time.py --sweep SWEEP.yaml [key=value ...]

The command is started as it is typed, with `together=1` and with `together=auto`, in turns, each with an `out` and a
`cache_dir` of its own: so start-up, loading, building caches, training and scoring are all in the seconds. The cells'
scores are compared: `scores_differ` is the largest difference. Without a YAML: flare cells of a small random Llama, as
many languages as cells, random words in the form of NusaX.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from pyarrow.parquet import write_table
from world import WORDS, write_base

from flare_ds.tasks.nusax import NUSAX
from flare_ds.yaml_file import dump_yaml

WAYS = ("1", "auto")
LABELS, FOLDERS = cast(tuple[str, ...], NUSAX.labels), cast(dict[str, str], NUSAX.config)
LANGUAGES = [language for language in NUSAX.languages if language != "en"]


def write_rows(directory: Path, *, rows: int) -> Path:
    """Random words of each language, in the form of NusaX."""
    for language in NUSAX.languages:
        draw = random.Random(language)
        place = directory / FOLDERS.get(language, language)
        place.mkdir(parents=True)
        for pool, first in (("train", 0), ("validation", rows), ("test", 2 * rows)):
            ids = [str(number) for number in range(first, first + rows)]
            texts = [" ".join([name, *draw.choices(WORDS, k=draw.randint(5, 20))]) for name in ids]
            labels = [LABELS[int(name) % len(LABELS)] for name in ids]
            write_table(pa.table({"id": ids, "text": texts, "label": labels}), place / f"{pool}.parquet")
    return directory


def write_sweep(directory: Path, *, cells: int) -> Path:
    """A sweep over that world."""
    base = write_base(directory / "base", layers=2, width=64, further=LABELS)
    settings: dict[str, Any] = {
        "out": "unused",
        "ranks": 1,
        "base": {
            "model": {"base": str(base), "dtype": "float32"},
            "task": {"name": NUSAX.name, "data_dir": str(write_rows(directory / "data", rows=32))},
            "train": {"steps": 4, "batch_size": 8, "validate_every": 4},
        },
        "grid": {"languages": LANGUAGES[:cells], "methods": ["flare"], "seeds": [1]},
    }
    path = directory / "sweep.yaml"
    path.write_text(dump_yaml(settings), encoding="utf-8")
    return path


def measure(sweep: Path, overrides: list[str], together: str, place: Path) -> tuple[float, dict[str, float]]:
    """Seconds of one sweep, and the score of each of its cells."""
    words = [f"together={together}", f"out={place / 'out'}", f"base.cache_dir={place / 'cache'}"]
    command = [sys.executable, "-m", "flare_ds", "sweep", str(sweep), *overrides, *words]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stdout)
    scored = place.glob("out/**/metrics.json")
    return seconds, {str(path.relative_to(place)): json.loads(path.read_text())["score"] for path in scored}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", type=Path, help="a sweep YAML (default: a small random world)")
    parser.add_argument("--cells", type=int, default=8, choices=range(1, len(LANGUAGES) + 1), help="of the small world")
    parser.add_argument("--rounds", type=int, default=1, help="how often each way has its turn")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    scores: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        sweep = given.sweep or write_sweep(Path(directory), cells=given.cells)
        for number in range(given.rounds):
            for way in WAYS:
                taken, scores[way] = measure(sweep, given.overrides, way, Path(directory, f"{way}-{number}"))
                seconds[way].append(taken)
    one, together = (statistics.median(seconds[way]) for way in WAYS)
    differ = max(abs(scores["1"][cell] - scores["auto"][cell]) for cell in scores["1"])
    shown = {"sweep": sweep.name, "overrides": " ".join(given.overrides), "rounds": given.rounds}
    found = {
        "cells": len(scores["1"]),
        "cell by cell": one,
        "together": together,
        "together / cell by cell": together / one,
    }
    print(json.dumps(shown | found | {"scores_differ": differ}, indent=2))


if __name__ == "__main__":
    main()
