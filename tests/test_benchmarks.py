"""The benchmarks run, print JSON and nothing else, and show what does not depend on the machine's speed."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.by_hand import make_batch, make_config, make_rows
from tests.distributed import REPOSITORY
from tests.small_models import small_model
from tests.toy import toy_settings, write_config


def run_benchmark(name: str, *arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / name), *arguments],
        cwd=REPOSITORY / "benchmarks",
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-20_000:]  # of both ranks
    return json.loads(done.stdout)


def test_gather_volume() -> None:
    found = run_benchmark("gather_volume.py")
    names = ("lockstep", "lockstep_checkpointing", "lockstep_validating", "two_forwards")
    lockstep, recomputed, validating, two_forwards = (found["variants"][name] for name in names)
    assert found["log_trace_cache_warnings"] is True
    assert lockstep["ratio"] <= 1.70
    assert two_forwards["ratio"] >= 2.9
    assert lockstep["ratio"] < recomputed["ratio"] < two_forwards["ratio"]
    assert lockstep["invalidations"] == recomputed["invalidations"] == 0
    assert validating["invalidations"] == 0 and validating["ratio"] <= lockstep["ratio"]
    assert two_forwards["invalidations"] > 0, "the count sees the message where there is one"
    for other in (recomputed, validating, two_forwards):
        np.testing.assert_allclose(other["losses"], lockstep["losses"], rtol=1e-5)


def test_a_rank_writes_nothing_that_another_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank wrote the DeepSpeed JSON, and now and then another read it half written."""

    def stop(*_: Any, **__: Any) -> None:
        raise InterruptedError

    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    gather_volume = importlib.import_module("gather_volume")
    monkeypatch.setattr(gather_volume, "load_shape", lambda model: None)
    monkeypatch.setattr(gather_volume, "open_model", stop)
    with pytest.raises(InterruptedError):
        gather_volume.measure("lockstep", tmp_path, counter=None)
    assert not list(tmp_path.iterdir())


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


def test_adapted_linears() -> None:
    found = run_benchmark("adapted_linears.py", "--steps", "1", "--layers", "2", "--width", "64")
    peft, lora, flare = (found["variants"][name] for name in ("peft", "lora", "flare"))
    assert (peft["modules_called_a_layer"], lora["modules_called_a_layer"]) == (41, 13)
    assert flare["modules_called_a_layer"] == 26, "and the norm that the source is read through"
    assert lora["kept_bytes"] < 0.75 * peft["kept_bytes"]
    assert found["over_peft"].keys() == {"lora", "flare"} and found["over_peft"]["lora"]["median_seconds"] > 0


def test_head_memory() -> None:
    found = run_benchmark("head_memory.py", "--vocabulary", "32768", "--length", "128")
    answer, every = found["positions"]["answer"], found["positions"]["all"]
    assert answer["loss"] == pytest.approx(every["loss"], rel=1e-5)
    assert every["logits_bytes"] == 4 * 32768 * 129 * 4  # rows, words, columns, fp32
    assert answer["logits_bytes"] == 4 * 32768 * 2 * 4
    assert found["saved_bytes"] > every["logits_bytes"] - answer["logits_bytes"]


def test_probe(tmp_path: Path) -> None:
    """Only the English text tells the label: its states show it, the Polish ones do not."""
    settings = toy_settings(tmp_path)
    del settings["task"]["validation_rows"]
    found = run_benchmark("probe.py", str(write_config(settings)), "--rows", "900")
    assert found["rows"]["train"] == 900 and found["rows"]["validation"] > 40
    chance = found["majority_share"] + 4 * found["standard_error"]
    embedded, *layers = found["layers"]
    assert [layer["layer"] for layer in layers] == [1, 2]
    assert embedded["last"] == dict.fromkeys(("source", "target", "both"), found["majority_share"]), "one token, ':'"
    assert embedded["mean"]["source"] == 1
    assert layers[0]["last"]["source"] > 0.9
    for layer in layers:
        for place in ("last", "mean"):
            assert min(layer[place]["source"], layer[place]["both"]) > 0.7
            assert layer[place]["target"] < chance


def test_the_probed_states_see_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    probe, base = importlib.import_module("probe"), small_model("llama")[0]
    rows, config = make_rows(0), make_config(method="lora", objective="labels")
    together = probe.read(base, make_batch(rows, config, pad_seed=1))
    for number, row in enumerate(rows):
        for place, state_KBD in probe.read(base, make_batch([row], config)).items():
            torch.testing.assert_close(together[place][:, number], state_KBD[:, 0])


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
