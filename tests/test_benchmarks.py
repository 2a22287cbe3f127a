"""The benchmarks run, print JSON and nothing else, and show what does not depend on the machine's speed."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.distributed import REPOSITORY


def run_benchmark(name: str, *arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / name), *arguments],
        cwd=REPOSITORY / "benchmarks",
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_gather_volume() -> None:
    found = run_benchmark("gather_volume.py")
    lockstep, recomputed, two_forwards = (
        found["variants"][name] for name in ("lockstep", "lockstep_checkpointing", "two_forwards")
    )
    assert found["log_trace_cache_warnings"] is True
    assert lockstep["ratio"] <= 1.75
    assert two_forwards["ratio"] >= 2.9
    assert lockstep["ratio"] < recomputed["ratio"] < two_forwards["ratio"]
    assert lockstep["invalidations"] == recomputed["invalidations"] == 0
    assert two_forwards["invalidations"] > 0, "the count sees the message where there is one"
    for other in (recomputed, two_forwards):
        np.testing.assert_allclose(other["losses"], lockstep["losses"], rtol=1e-5)


@pytest.mark.parametrize("ranks", ["0", "2"])
def test_step_cost(ranks: str) -> None:
    found = run_benchmark("step_cost.py", "--steps", "2", "--batch", "2", "--length", "8", "--engine", ranks)
    assert found["variants"].keys() == {"flare", "flare_two_forwards", "lora"}
    for variant in found["variants"].values():
        assert len(variant["seconds"]) == 2 and variant["median_seconds"] > 0
        assert 0 < variant["rise_bytes"] < variant["peak_bytes"]
    losses = {name: variant["losses"] for name, variant in found["variants"].items()}
    np.testing.assert_allclose(losses["flare_two_forwards"], losses["flare"], rtol=1e-5)
    assert losses["lora"][0] == pytest.approx(losses["flare"][0], rel=1e-5), "B = 0: the base alone"
    assert losses["lora"][-1] != pytest.approx(losses["flare"][-1], rel=1e-5)
    for quantity in ("median_seconds", "rise_bytes", "peak_bytes"):
        assert found["ratios"][quantity].keys() == {"flare/lora", "flare_two_forwards/lora"}


def test_head_memory() -> None:
    found = run_benchmark("head_memory.py", "--vocabulary", "32768", "--length", "128")
    answer, every = found["positions"]["answer"], found["positions"]["all"]
    assert answer["loss"] == pytest.approx(every["loss"], rel=1e-5)
    assert every["logits_bytes"] == 4 * 32768 * 129 * 4  # rows, words, columns, fp32
    assert answer["logits_bytes"] == 4 * 32768 * 2 * 4
    assert found["saved_bytes"] > every["logits_bytes"] - answer["logits_bytes"]


def test_cache() -> None:
    small = ["--rows", "3000", "--build-rows", "200", "--workers", "1", "--openings", "1"]
    found = run_benchmark("cache.py", *small)
    assert found["rows"] == found["build"]["large"]["rows"] == 3000
    assert 0 <= found["open"]["rise_bytes"] < 50 * 2**20
    for access in ("random", "epoch"):
        assert found[access]["arrow_us"].keys() == {"plain", "numpy"}
        fastest = min(found[access]["arrow_us"].values())
        assert found[access]["arrow/cache"] == pytest.approx(fastest / found[access]["cache_us"])
    assert found["random"]["arrow/cache"] > 2, "ten on a machine that does nothing else"
    assert found["build"]["1 workers"]["rows_per_second_per_worker"] > 0
