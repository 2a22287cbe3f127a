"""The benchmarks run, print JSON and nothing else, and show what does not depend on the machine's speed."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tests.by_hand import make_batch, make_config, make_rows
from tests.distributed import REPOSITORY, inherited, run_ranks
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
    assert lockstep["ratio"] <= 1.70 and recomputed["ratio"] <= 1.70, "recomputing gathers nothing again"
    assert recomputed["gathers_a_step"] <= lockstep["gathers_a_step"]
    assert two_forwards["ratio"] >= 2.9
    assert lockstep["invalidations"] == recomputed["invalidations"] == 0
    assert validating["invalidations"] == 0 and validating["ratio"] <= lockstep["ratio"]
    assert two_forwards["invalidations"] > 0, "the count sees the message where there is one"
    for other in (recomputed, validating, two_forwards):
        np.testing.assert_allclose(other["losses"], lockstep["losses"], rtol=1e-5)


def test_evaluation() -> None:
    found = run_benchmark("evaluation.py", "--rows=4", "--length=8", "--written=2", "--repeat=1")
    assert {f"{method} {how}" for method in ("flare", "lora") for how in ("ranked", "written")} < found[
        "seconds"
    ].keys()
    assert set(found["ratios"]) == {
        *(f"flare_over_lora, {how}" for how in ("ranked", "written")),
        *(f"{ratio}, {method}" for ratio in ("ranked_over_written", "auto_over_16") for method in ("flare", "lora")),
    }
    assert all(ratio > 0 for ratio in found["ratios"].values())


def test_a_rank_writes_nothing_that_another_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank wrote the DeepSpeed JSON, and now and then another read it half written."""

    def stop(*_: Any, **__: Any) -> None:
        raise InterruptedError

    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    gather_volume = importlib.import_module("gather_volume")
    monkeypatch.setattr(gather_volume, "load_shape", lambda model: None)
    monkeypatch.setattr(gather_volume, "open_engine", stop)
    with pytest.raises(InterruptedError):
        gather_volume.measure("lockstep", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Runs a script here, the ranks that it starts forked; what it printed. `script.module` is the module."""

    def forked(file: str, arguments: list[str], ranks: int) -> Any:
        out = tmp_path / "out.json"
        run_ranks(["tests.benchmark_worker", file, *arguments, str(out)], max(ranks, 1))
        return json.loads(out.read_text())

    def module(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
        found = importlib.import_module(name)
        if hasattr(found, "run_ranks"):
            monkeypatch.setattr(found, "run_ranks", forked)
        return found

    def run(name: str, *arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capsys.readouterr()
        module(name).main()
        return json.loads(capsys.readouterr().out)

    run.module = module  # type: ignore[attr-defined]
    return run


@pytest.mark.parametrize("ranks", ["0", "2"])
def test_step_cost(script: Any, ranks: str) -> None:
    sizes = ["--steps", "2", "--batch", "2", "--length", "8", "--engine", ranks]
    variants = ["plain_lora", "flare_paper", "flare_two_forwards"]
    found = script("step_cost", *sizes, "--variants", *variants)
    assert found["variants"].keys() == set(variants)
    for variant in found["variants"].values():
        assert len(variant["seconds"]) == 2 and variant["median_seconds"] > 0
        assert 0 < variant["rise_bytes"] < variant["peak_bytes"]
    losses = {name: variant["losses"] for name, variant in found["variants"].items()}
    np.testing.assert_allclose(losses["flare_two_forwards"], losses["flare_paper"], rtol=1e-5)
    assert losses["plain_lora"][0] == pytest.approx(losses["flare_paper"][0], rel=1e-5), "B = 0: the base alone"
    assert losses["plain_lora"][-1] != pytest.approx(losses["flare_paper"][-1], rel=1e-5)
    for quantity in ("median_seconds", "rise_bytes", "peak_bytes"):
        assert found["ratios"][quantity].keys() == {f"{name}/plain_lora" for name in variants}


def test_a_step_of_every_variant_is_measured(script: Any) -> None:
    """As `run.py` asks, where the source is half as long."""
    sizes = ["--steps", "1", "--batch", "2", "--length", "8", "--source-length", "4"]
    found = script("step_cost", *sizes)["variants"]
    assert {"plain_lora", "lora", "x_mixup", "input_fusion", "flare", "flare_mt", "flare_two_forwards"} <= found.keys()
    for variant in found.values():
        assert variant["median_seconds"] > 0 and np.isfinite(variant["losses"]).all()


def test_our_lora_is_plain_lora(script: Any) -> None:
    """With rows of unequal texts; the methods' own batches are laid out by the same function."""
    sizes = ["--steps", "1", "--batch", "2", "--length", "8", "--source-length", "4"]
    found = script("step_cost", *sizes, "--variants", "plain_lora", "lora")["variants"]
    np.testing.assert_allclose(found["lora"]["losses"], found["plain_lora"]["losses"], rtol=1e-5)


def test_the_peer_trains_on_the_same_rows(script: Any) -> None:
    """Then both say the same losses, step by step, and positions without a target change nothing."""
    found = script("peer_trainer", "--rounds", "1", "--steps", "3")["variants"]
    for peer in ("peer", "peer_vocabulary"):
        np.testing.assert_allclose(found["ours_vocabulary"]["losses"], found[peer]["losses"], rtol=1e-4)


def test_figures_are_the_committed_ones(script: Any) -> None:
    """Exactly: whoever changes one explains it, and writes benchmarks/baselines.json anew."""
    script("figures", "--quick")


def test_a_figure_that_differs_is_named(script: Any) -> None:
    figures = script.module("figures")
    assert list(figures.differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3, "d": 4}})) == [
        "/a/c: 2 in baselines.json, 3 now",
        "/a/d: None in baselines.json, 4 now",
    ]


def test_what_is_kept_for_backward(script: Any) -> None:
    """A matrix product keeps its input, once; not its weight."""
    weight, input = torch.randn(5, 5, requires_grad=True), torch.randn(3, 5)
    with script.module("counting").saved_bytes([weight]) as found:
        (input @ weight + input @ weight).sum()
    assert found == {"bytes": 3 * 5 * 4, "float32_bytes": 3 * 5 * 4}


def test_memory_parts(script: Any) -> None:
    found = script("memory_parts", "--batch", "2", "--length", "8", "--methods", "lora", "flare")
    lora, flare = found["parts"]["lora"], found["parts"]["flare"]
    for parts in (lora, flare):
        assert parts["gradient_bytes"] == parts["trained_bytes"]
        assert parts["optimizer_bytes"] >= 2 * parts["trained_bytes"], "two moments, and a count of steps"
    assert lora["base_bytes"] == flare["base_bytes"]
    assert flare["kept_bytes"] > lora["kept_bytes"]


def test_scaling(script: Any) -> None:
    scaling = script.module("scaling")
    assert scaling.exponent({1: 3.0, 2: 12.0, 4: 48.0}) == pytest.approx(2)
    assert scaling.doubled(8, 4) == [8, 16, 32]
    found = script("scaling", "--factor", "2", "--steps", "1")
    assert found["exponents"].keys() == {"length", "batch", "layers", "ranks", "rows"}


def test_host_time(script: Any) -> None:
    found = script("host_time", "--steps", "1")
    assert found["plain"]["modules_a_layer"] == found["hooked"]["modules_a_layer"] > 20


def test_a_simulated_point_is_that_of_a_slow_computation(script: Any) -> None:
    """Llama 3.1 8B on 64 GPUs: matrix by matrix, layer by layer, token by token."""
    simulated = script.module("simulate_cluster")
    measured = simulated.Measured(1.75, 3.4, 0.004, 0.001)
    work, rows, columns = simulated.Work(4, 96, 48), 4, (96, 48)
    shape, link, peak = simulated.MODELS["Llama 3.1 8B"], 40e9, 0.41 * 989e12
    matrices = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), *[(4096, 14336)] * 2, (14336, 4096)]
    operations = elements = adapter = 0
    for _layer in range(32):
        for inputs, outputs in matrices:
            elements += inputs * outputs
            adapter += 8 * (inputs + outputs)
            for target, length in ((True, columns[0]), (False, columns[1])):
                for _token in range(rows * length):
                    operations += 2 * inputs * outputs * (2 if target else 1)
                    operations += 2 * 8 * (inputs + outputs) * 3 if target else 0
        for passes, length in ((3, columns[0]), (1, columns[1])):
            for _row in range(rows):  # scores and their values: every column against every column, in 32 heads of 128
                operations += passes * 2 * 2 * length * length * 32 * 128
    live = 8 * (2 - 1.75)  # layers that are gathered once
    bytes_moved = 2 * (elements + 128_256 * 4096) * (2 - live / 32) * 63 / 64
    gathers = bytes_moved / link + (2 - live / 32) * 32 * 20e-6 * (2 + 64 / 8 / 16)
    busy = max(operations / peak, 32 * 0.004)
    reduction = 2 * 4 * adapter * 63 / 64 / link + 20e-6 * (2 + 64 / 8 / 16)
    expected = busy + max(0, gathers - 0.8 * busy) + reduction
    point = simulated.predict(shape, work, measured, "lockstep", 64)
    assert point["seconds"] == pytest.approx(expected)
    assert point["rows_per_second"] == pytest.approx(64 * 4 / expected)
    whole = simulated.predict(shape, work, measured, "whole", 64)
    assert whole["seconds"] == pytest.approx(max(operations / peak, 32 * 0.001) + reduction)


def test_what_is_simulated(script: Any) -> None:
    simulated = script.module("simulate_cluster")
    names = {
        "Llama 3.1 8B": 8_030_261_248,
        "Llama 3.1 70B": 70_553_706_496,
        "Gemma 2 9B": 9_241_705_984,
        "Gemma 2 27B": 27_227_128_320,
    }
    for name, elements in names.items():  # of the published weights; norms are not counted here
        assert simulated.MODELS[name].elements == pytest.approx(elements, rel=1e-3)
    measured, work = simulated.Measured(1.75, 3.4, 0.004, 0.001), simulated.Work(8, 128, 128)
    found = simulated.simulate(work, measured)["predicted rows a second"]
    assert found["Llama 3.1 70B, 8 GPUs"]["whole"] is None, "140 GB on a card of 80"
    for faster, slower, fit in (("lockstep", "two_passes", 15), ("together", "whole", 12)):
        both = [(speeds[faster], speeds[slower]) for speeds in found.values()]
        known = [pair for pair in both if None not in pair]
        assert len(known) == fit == sum(pair != (None, None) for pair in both)
        assert all(fast >= slow for fast, slow in known) and any(fast > 1.2 * slow for fast, slow in known)


def test_the_page_is_what_was_measured(script: Any, tmp_path: Path) -> None:
    run = script.module("run")
    benchmarks = REPOSITORY / "benchmarks"
    assert (benchmarks / "RESULTS.md").read_text(encoding="utf-8") == run.page(benchmarks / "results")
    for name, (file, *_) in run.BENCHMARKS.items():
        measured = (benchmarks / f"results/{name}.json").exists()
        assert (benchmarks / f"{file}.py").exists() and (f"## {name}\n" in run.page(benchmarks / "results")) is measured
        assert f"`{name}`" in run.page(tmp_path).partition("Not measured by it yet: ")[2]


def test_every_number_of_a_json_is_on_its_page(script: Any) -> None:
    tables = "".join(script.module("run").tables({"x": 1, "of": {"a": {"s": 0.5, "l": [7]}, "b": {"s": 2e9}}}, ""))
    assert "| x | 1 |" in tables and "| s | 0.5 |" in tables and "| s | 2e+09 |" in tables and "7" not in tables
    alike = "".join(script.module("run").tables({"of": {"a": {"s": 1, "t": None}, "b": {"s": 2, "t": 3}}}, ""))
    assert "| of | s | t |" in alike and "| a | 1 | – |" in alike and "| b | 2 | 3 |" in alike


def test_what_a_gpu_must_answer_runs_here() -> None:
    done = subprocess.run(
        ["bash", str(REPOSITORY / "benchmarks/gpu.sh"), "--tiny"],
        cwd=REPOSITORY,
        env={**inherited(), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(done.stdout)
    assert found["gpu"].startswith("none") and found["tiny"]
    failed = {
        part: answer["failed"] for part, answer in found.items() if isinstance(answer, dict) and "failed" in answer
    }
    assert not failed
    assert all(
        answer["finite"] and answer["off"] < 0.1 for name, answer in found["attention"].items() if "sdpa" in name
    )
    first = found["first_step"]
    assert first["finite_gradients"] and first["parameters_without"] == 0 and first["devices"] == ["cpu"]
    assert first["loss_bfloat16"] == pytest.approx(first["loss_float32"], rel=0.02)
    assert found["resume"]["same"] and len(found["resume"]["stopped"]) == 4
    losses = [found["quantized"][stored] for stored in ("none", "nf4", "int8")]
    assert all(map(math.isfinite, losses)) and len(set(losses)) == 3


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
    small = ["--rows", "3000", "--build-rows", "200", "--workers", "1", "--openings", "1", "--reader-rows", "100"]
    found = run_benchmark("cache.py", *small, "--load-rows", "2000")
    assert found["load"][0]["rows"] == 2000
    assert found["rows"] == found["build"]["large"]["rows"] == 3000
    assert 0 <= found["open"]["rise_bytes"] < 50 * 2**20
    for access in ("random", "epoch"):
        assert found[access]["arrow_us"].keys() == {"plain", "numpy"}
        fastest = min(found[access]["arrow_us"].values())
        assert found[access]["arrow/cache"] == pytest.approx(fastest / found[access]["cache_us"])
    assert found["random"]["arrow/cache"] > 2, "ten on a machine that does nothing else"
    assert found["launch"]["seconds"] > 0
    assert min(found["readers"].values()) > 0
    assert found["build"]["1 workers"]["rows_per_second_per_worker"] > 0
