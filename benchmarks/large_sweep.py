"""What looking at a sweep of a thousand finished cells costs; prints JSON.

    python benchmarks/large_sweep.py [--cells 1000] [--steps 200] [--rows 400]

`sweep --dry-run`, `status` and `report` are started as they are typed, over run directories written by hand: settings,
records, a log of so many steps, an adapter of 100 kB, scores and predictions of so many rows. `seconds` are from start
to end, `mb` is the peak of the process's memory. The claim is under 10 s and 1,000 MB each, at the default sizes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from flare_ds.checksums import file_sha256
from flare_ds.files import write_text
from flare_ds.model_files.fingerprint import model_fingerprint
from flare_ds.runs.directory import ADAPTER_WEIGHTS, at_place
from flare_ds.scoring.predictions import write_predictions
from flare_ds.sweep.plan import PlannedRun, load_sweep
from flare_ds.yaml_file import dump_yaml

LANGUAGES = ["ar", "bg", "de", "el", "es", "fr", "hi", "ru", "sw", "th"]
SEEDS = 5
VERBS = {"dry-run": ["sweep", "sweep.yaml", "--dry-run"], "status": ["status", "runs"], "report": ["report", "runs"]}


def main() -> None:
    """Make the cells, look at them, print what that cost."""
    parser = argparse.ArgumentParser(description="time the verbs that look at a large sweep")
    parser.add_argument("--cells", type=int, default=1000, help="rounded up to a multiple of 100")
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    parser.add_argument("--rows", type=int, default=400, help="test rows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        cells = make_sweep(-(-options.cells // (2 * SEEDS * len(LANGUAGES))))
        for number, cell in enumerate(cells):
            finish(cell, number, steps=options.steps, rows=options.rows)
        costs = {name: cost(words) for name, words in VERBS.items()}
    print(json.dumps({"cells": len(cells), "steps": options.steps, "rows": options.rows, **costs}, indent=2))


def make_sweep(rates: int) -> tuple[PlannedRun, ...]:
    """Write a sweep with so many learning rates, and a base for it, into the working directory."""
    Path("model").mkdir()
    Path("model/config.json").write_text('{"model_type": "llama"}')
    save_file({"weight": torch.zeros(64, 64)}, "model/model.safetensors")
    settings: dict[str, Any] = {
        "out": "runs",
        "ranks": 1,
        "base": {"model": {"base": "model"}, "task": {"name": "xnli", "data_dir": "data"}, "train": {"steps": 600}},
        "grid": {"languages": LANGUAGES, "methods": ["lora", "flare"], "seeds": list(range(SEEDS))},
    }
    settings["grid"]["train.learning_rate"] = [round(1e-4 * (rate + 1), 6) for rate in range(rates)]
    Path("sweep.yaml").write_text(dump_yaml(settings))
    return load_sweep("sweep.yaml").cells


def finish(cell: PlannedRun, number: int, *, steps: int, rows: int) -> None:
    """Leave what a finished cell leaves."""
    place = cell.directory
    write_text(place / "config.yaml", at_place(cell.config).to_yaml())
    weights = place / ADAPTER_WEIGHTS
    weights.parent.mkdir()
    save_file({"lora_A": torch.full((25_000,), float(number))}, weights)
    log: list[dict[str, Any]] = [{"step": step, "loss": 1 / step, "step_seconds": 0.5} for step in range(1, steps + 1)]
    log += [{"step": step, "validation_score": 0.5, "validation_loss": 0.7} for step in range(20, steps + 1, 20)]
    (place / "train_log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log))
    answers = [
        {"id": f"r{row}", "label": "yes", "prediction": "no" if (row + number) % 3 else "yes"} for row in range(rows)
    ]
    write_predictions(place / "predictions.parquet", answers)
    score = sum(answer["label"] == answer["prediction"] for answer in answers) / rows
    metrics = {"schema": 3, "answers": "ranked", "metric": "accuracy", "score": score, "num_examples": rows}
    metrics |= {"confidence_interval": [score, score], "figures": {}, "adapter_sha256": file_sha256(weights)}
    training = {"steps": steps, "train_seconds": 300.0, "trained_parameters": 25_000, "median_step_seconds": 0.5}
    records = {
        "base": {"fingerprint": model_fingerprint("model")},
        "cache": {},
        "metrics": metrics,
        "training": training,
    }
    for name, record in records.items():
        (place / f"{name}.json").write_text(json.dumps(record))


def cost(words: list[str]) -> dict[str, float]:
    """Seconds and memory of a command."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "flare_ds", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, f"{words} ended with {status}"
    return {"seconds": round(time.perf_counter() - started, 1), "mb": round(used.ru_maxrss / 1e3)}


if __name__ == "__main__":
    main()
