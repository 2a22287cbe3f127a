"""Run directories written by hand, and the tables of a report read back."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from flare_ds.checksums import file_sha256
from flare_ds.methods import METHODS
from flare_ds.settings import parse_config

COSTS = {
    "trained_parameters": 123456,
    "examples": 640,
    "tokens_per_step": 812.5,
    "padded_tokens_per_step": 1024.0,
    "flops_per_step": 2.0e9,
}


def write_run(
    root: Path,
    name: str,
    method: str,
    seed: int,
    correct=None,
    /,
    *,
    target="pl",
    steps=40,
    r=8,
    base="base",
    clusters=None,
    **task,
) -> Path:
    """A run directory; finished if `correct` says which test rows were right."""
    directory = root / name
    directory.mkdir(parents=True)
    config = {
        "method": method,
        "run_dir": str(directory),
        "deepspeed": "ds.json",
        "model": {"base": base},
        "task": {"name": "multiemo", "data_dir": "data", "target_language": target, **task},
        "source": {"mt_encoder": "nllb"},
        "adapter": {"r": r},
        "train": {"steps": steps, "seed": seed},
    }
    (directory / "config.yaml").write_text(parse_config(config, origin="test").to_yaml())
    if correct is not None:
        write_result(directory, method, correct, seed, clusters)
    return directory


def write_records(directory: Path, *, rows: str, base: str = "f" * 64, **fields: str) -> None:
    """What a run that has begun says of what it reads."""
    (directory / "base.json").write_text(json.dumps({"name": "anything", "fingerprint": base}))
    (directory / "cache.json").write_text(json.dumps({"key": "any", "fields": {"rows_sha256": rows, **fields}}))


def write_result(directory: Path, method: str, correct, seed: int, clusters=None) -> None:
    rows = [{"id": f"r{i}", "label": "yes", "prediction": "yes" if right else "no"} for i, right in enumerate(correct)]
    if clusters is not None:
        rows = [row | {"cluster": cluster} for row, cluster in zip(rows, clusters, strict=True)]
    if METHODS.get(method).trains:
        (directory / "adapter").mkdir()
        (directory / "adapter/adapter_model.safetensors").write_bytes(str(directory).encode())
    write_scores(directory, "accuracy", float(np.mean(correct)), rows)
    if METHODS.get(method).trains:
        write_training(directory, median_step_seconds=1.0 + seed, tokens_per_second=1000.0 * seed)


def write_training(directory: Path, **figures: float) -> None:
    (directory / "training.json").write_text(json.dumps(COSTS | figures))


def write_scores(directory: Path, metric: str, score: float, rows: list[dict], **figures: float) -> None:
    pd.DataFrame(rows).to_parquet(directory / "predictions.parquet")
    weights = directory / "adapter/adapter_model.safetensors"
    metrics = {
        "adapter_sha256": file_sha256(weights) if weights.exists() else None,
        "schema": 3,
        "answers": "ranked",
        "metric": metric,
        "score": score,
        "num_examples": len(rows),
        "confidence_interval": [0.111, 0.999],
        "figures": {metric: score, **figures},
    }
    (directory / "metrics.json").write_text(json.dumps(metrics))


def write_log(directory: Path, *lines: dict, torn: str = "") -> None:
    (directory / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def validation(step: int, score: float) -> dict:
    return {"step": step, "validation_score": score, "validation_loss": 1 - score}


def tables(text: str) -> list[list[dict[str, str]]]:
    """All tables: their lines by column."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    split = [[[cell.strip() for cell in line.strip("| ").split("|")] for line in block] for block in blocks]
    return [[dict(zip(columns, line, strict=True)) for line in lines] for columns, _, *lines in split]


def methods(text: str) -> list[dict[str, str]]:
    """The lines of the table of methods."""
    return tables(text)[0]


def differences(text: str) -> dict[tuple[str, str], dict[str, str]]:
    """The lines of the table of differences, by method and seeds."""
    found = [lines for lines in tables(text) if "p (Holm)" in lines[0]]
    return {(line["method"], line["seeds"]): line for lines in found for line in lines}


def over_languages(text: str) -> dict[str, dict[str, str]]:
    """The lines of the table over languages, by method."""
    found = [lines for lines in tables(text) if "first" in lines[0]]
    return {line["method"]: line for lines in found for line in lines}


def bounds(line: dict[str, str], column: str = "95 % interval") -> list[float]:
    return [float(bound) for bound in line[column].split(" to ")]


def two_way(table: np.ndarray) -> tuple[float, float]:
    """Bounds of the mean of [seeds, rows] where both are drawn."""
    error, freedom = error_and_freedom(table)
    half = stats.t.ppf(0.975, freedom) * error
    return table.mean() - half, table.mean() + half


def error_and_freedom(table: np.ndarray) -> tuple[float, float]:
    """Of the mean of [seeds, rows]: from sums of squares, the rest by what they leave."""
    seeds, rows = table.shape
    total = ((table - table.mean()) ** 2).sum()
    of_seed = rows * ((table.mean(1) - table.mean()) ** 2).sum()
    of_row = seeds * ((table.mean(0) - table.mean()) ** 2).sum()
    freedom = np.array([seeds - 1, rows - 1, (seeds - 1) * (rows - 1)])
    squares = np.array([of_seed, of_row, total - of_seed - of_row]) / freedom
    variance = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    return np.sqrt(variance / table.size), variance**2 / (squares**2 / freedom).sum()


def random_correct(seed: int, share: float, n: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < share
