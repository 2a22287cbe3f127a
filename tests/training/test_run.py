"""Whole runs on two real ZeRO-3 ranks through the command line: learning, scoring, resuming, predicting."""

import hashlib
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from flare_ds.adapters.files import load_adapter
from flare_ds.batches.batching import MicroBatch
from flare_ds.batches.collate import collate
from flare_ds.config import Config
from flare_ds.data.cache import open_cache, prepare_cache
from flare_ds.models.loading import load_tokenizer
from flare_ds.models.two_stream import build_model
from flare_ds.runtime.engine import trainable_parameters
from flare_ds.scoring.metrics import confidence_interval
from flare_ds.settings import load_config
from flare_ds.tasks.base import TASKS
from flare_ds.training import steps
from tests.distributed import run_ranks, start_ranks
from tests.toy import LABELS, toy_settings, write_config


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy")


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def train_and_evaluate(settings: dict, world_size: int = 2) -> Path:
    config = str(write_config(settings))
    run_ranks(["flare_ds", "train", config], world_size)
    run_ranks(["flare_ds", "evaluate", config], world_size)
    return Path(settings["run_dir"])


LEARN = {"steps": 240, "batch_size": 32, "micro_batch_size": 16, "validate_every": 40, "save_every": 1000}


@pytest.fixture(scope="module")
def learned(root: Path) -> Path:
    settings = toy_settings(root, method="flare", name="flare", **LEARN)
    return train_and_evaluate(settings | {"evaluate": {"whole_model": False}})


def test_flare_reads_what_only_the_source_says(learned: Path) -> None:
    assert read_json(learned / "metrics.json")["score"] > 0.95


def one_process_log_probabilities(config: Config) -> tuple[np.ndarray, list[str]]:
    """Score the test rows one by one without an engine, from the adapter's files."""
    cache = open_cache(prepare_cache(config, load_tokenizer(config.model)))
    model = build_model(config, label_tokens=cache.label_tokens).eval()
    parameters = trainable_parameters(model)
    for name, tensor in load_adapter(Path(config.run_dir) / "adapter", parameters).items():
        parameters[name].data.copy_(tensor)
    split = cache.split("test")
    rows = []
    for row in range(len(split)):
        one = MicroBatch(np.array([row]), np.ones(1, np.float32))
        batch = collate(split, one, streams=("source", "target"), objective="labels", pad_id=0)
        with torch.no_grad():
            rows.append(model(batch)[0, 0].log_softmax(-1).numpy())
    return np.stack(rows), [split.ids(row) for row in range(len(split))]


def test_a_fresh_process_gives_the_same_scores(learned: Path) -> None:
    config = load_config(learned)
    expected, ids = one_process_log_probabilities(config)
    predictions = pd.read_parquet(learned / "predictions.parquet")
    assert predictions["id"].tolist() == ids, "each test row once, in cache order"
    np.testing.assert_allclose(predictions[SCORES], expected, atol=1e-4)
    right = (predictions["label"] == predictions["prediction"]).mean()
    metrics = read_json(learned / "metrics.json")
    assert metrics["score"] == pytest.approx(right)
    true = [list(LABELS).index(word) for word in predictions["label"]]
    loss = -np.asarray(expected)[np.arange(len(true)), true].mean()
    assert metrics["figures"]["loss"] == pytest.approx(float(loss), abs=1e-4)


SCORES = [f"log_probability_{word}" for word in LABELS]


@contextmanager
def hidden(learned: Path, *, tokenizer: bool) -> Iterator[None]:
    """The run's raw data are gone, and maybe its tokenizer: there is but its directory, its cache and its base."""
    config = load_config(learned)
    paths = [Path(str(config.task.data_dir)), *(Path(config.model.base).glob("*token*") if tokenizer else ())]
    away = learned.parent / "away"
    away.mkdir()
    for path in paths:
        path.rename(away / path.name)
    try:
        yield
    finally:
        for path in paths:
            (away / path.name).rename(path)
        away.rmdir()


@pytest.fixture(scope="module")
def evaluated(learned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """What the run scored on 1 and on 3 ranks, label words ranked and generated, and on 2 (ranked only)."""
    outs = {ranks: tmp_path_factory.mktemp(f"on-{ranks}") for ranks in (1, 2, 3)}
    shutil.copy(learned / "predictions.parquet", outs[2] / "ranked.parquet")
    with hidden(learned, tokenizer=False):
        for ranks in (1, 3):
            run_ranks(["tests.evaluation.evaluate_worker", str(learned), str(outs[ranks])], ranks)
    return outs


def test_predictions_do_not_depend_on_the_number_of_ranks(evaluated: dict[int, Path]) -> None:
    """101 rows of several lengths make 7 batches: neither 2 nor 3 ranks share the rows or the batches evenly."""
    on = {ranks: pd.read_parquet(out / "ranked.parquet") for ranks, out in evaluated.items()}
    assert on[1]["id"].is_unique and len(on[1]) == 101
    for ranks in (2, 3):
        assert on[ranks]["id"].tolist() == on[1]["id"].tolist()
        differ = on[ranks]["prediction"] != on[1]["prediction"]
        best_two = np.sort(on[1].loc[differ, SCORES], axis=1)[:, -2:]
        assert (best_two[:, 1] - best_two[:, 0] < 1e-3).all()
        np.testing.assert_allclose(on[ranks][SCORES], on[1][SCORES], atol=1e-4)
        print(f"{differ.sum()} of {len(differ)} predictions differ on {ranks} ranks from those on one")


def test_generated_label_words_do_not_depend_on_the_number_of_ranks(evaluated: dict[int, Path]) -> None:
    """The run's head is of the label words; the whole head writes other words as well, and those are none of them."""
    on = {ranks: pd.read_parquet(evaluated[ranks] / "generated.parquet") for ranks in (1, 3)}
    assert on[1]["text"].tolist() == on[3]["text"].tolist()
    np.testing.assert_allclose(on[1]["log_probability"], on[3]["log_probability"], atol=1e-4)
    metrics = read_json(evaluated[1] / "generated.json")
    assert metrics["answers"] == "generated" and metrics["num_examples"] == len(on[1]) == 101
    read = [text if text in LABELS else None for text in on[1]["text"]]
    assert [None if pd.isna(said) else said for said in on[1]["prediction"]] == read
    assert metrics["score"] == pytest.approx(
        np.mean([said == true for said, true in zip(read, on[1]["label"], strict=True)])
    )
    assert metrics["figures"]["not_a_label"] == pytest.approx(np.mean([said is None for said in read]))


def test_evaluating_again_writes_the_same_predictions(learned: Path, evaluated: dict[int, Path]) -> None:
    """In the same process, and in a new one that finds neither raw data nor a tokenizer."""
    before = (evaluated[1] / "ranked.parquet").read_bytes()
    assert (evaluated[1] / "again.parquet").read_bytes() == before
    with hidden(learned, tokenizer=True):
        run_ranks(["flare_ds", "evaluate", str(learned)], 1)
    assert (learned / "predictions.parquet").read_bytes() == before


def test_metrics_say_what_was_scored_and_how(learned: Path, evaluated: dict[int, Path]) -> None:
    metrics, cache = read_json(evaluated[3] / "ranked.json"), read_json(learned / "cache.json")
    assert metrics["schema"] == 3 and metrics["answers"] == "ranked" and metrics["num_examples"] == 101
    assert metrics["task_version"] == TASKS.get("multiemo").version and metrics["cache_key"] == cache["key"]
    weights = (learned / "adapter/adapter_model.safetensors").read_bytes()
    assert metrics["adapter_sha256"] == hashlib.sha256(weights).hexdigest()
    assert metrics["model_fingerprint"] == read_json(learned / "base.json")["fingerprint"]
    how = {"level": 0.95, "method": "percentile bootstrap over clusters of examples", "resamples": 10_000}
    assert metrics["interval"] == how
    assert {"flare_ds", "torch", "numpy"} < metrics["versions"].keys()
    predictions = pd.read_parquet(evaluated[3] / "ranked.parquet")
    outcomes = list(predictions[["prediction", "label"]].itertuples(index=False, name=None))
    assert metrics["num_clusters"] == predictions["cluster"].nunique() == 101, "so the interval is that of the rows"
    assert metrics["confidence_interval"] == list(confidence_interval("accuracy", [outcomes]))


def test_predict_reads_a_pair(learned: Path) -> None:
    source, target = "word1 word2 awful word3 word4 word5", "word7 word8 word9 word1 word2 word3"
    (output,) = run_ranks(["flare_ds", "predict", str(learned), "--source", source, "--target", target], 1)
    best = output.splitlines()[-4]
    assert best.endswith("negative") and float(best.split()[0]) > 0.5
    (refused,) = run_ranks(["flare_ds", "predict", str(learned), "--target", target], 1, expect=1)
    assert "needs a source text" in refused and '--source "TEXT"' in refused


def test_adapter_files(root: Path, learned: Path) -> None:
    weights = load_file(learned / "adapter/adapter_model.safetensors")
    layers, modules = 2, ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    modules += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    matrices = {module: ["lora_A", "lora_B"] for module in modules}
    for fused in ("self_attn.o_proj", "mlp.down_proj"):
        matrices[fused].append("lora_fusion.source_down")
    assert set(weights) == {
        f"base_model.model.model.layers.{layer}.{module}.{matrix}.weight"
        for layer in range(layers)
        for module in modules
        for matrix in matrices[module]
    }
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    with pytest.raises((KeyError, ValueError, TypeError)):  # PEFT alone must not run it as plain LoRA
        PeftConfig.from_pretrained(str(learned / "adapter"))


def test_a_lora_adapter_loads_in_plain_peft(root: Path) -> None:
    settings = toy_settings(root, method="lora", name="peft", steps=4)
    run = train_and_evaluate(settings)
    base = AutoModelForCausalLM.from_pretrained(settings["model"]["base"])
    model = PeftModel.from_pretrained(base, str(run / "adapter"))
    saved = load_file(run / "adapter/adapter_model.safetensors")
    loaded = {name.replace(".default", ""): p for name, p in model.named_parameters() if "lora_" in name}
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_merge_equals_peft(root: Path) -> None:
    settings = toy_settings(root, method="lora", name="stage1", steps=6)
    settings["task"] |= {"target_language": "en"}
    run = train_and_evaluate(settings)
    merged = root / "merged"
    run_ranks(["flare_ds", "merge", str(run), "--output", str(merged)], 1)
    base = AutoModelForCausalLM.from_pretrained(settings["model"]["base"])
    expected = PeftModel.from_pretrained(base, str(run / "adapter")).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(merged).state_dict()
    assert found.keys() == expected.keys()
    changed = 0
    original = AutoModelForCausalLM.from_pretrained(settings["model"]["base"]).state_dict()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-6)
        changed += not torch.equal(found[name], original[name])
    assert changed == 2 * 7
    again = run_ranks(["flare_ds", "merge", str(run), "--output", str(merged)], 1, expect=1)
    assert "exists already" in again[0]


def test_a_fusion_adapter_does_not_merge(learned: Path, root: Path) -> None:
    (output,) = run_ranks(["flare_ds", "merge", str(learned), "--output", str(root / "no")], 1, expect=1)
    assert "cannot be merged" in output and not (root / "no").exists()


def test_dropout_is_another_in_each_step_on_each_rank_and_of_each_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it was, when a step is taken again."""

    def drawn(seed: int, step: int, rank: int) -> int:
        found: dict[int, int] = {}

        def end() -> None:
            raise InterruptedError

        model = SimpleNamespace(seed=found.update)
        engine = SimpleNamespace(model=model, root=SimpleNamespace(train=end))
        train, progress = SimpleNamespace(seed=seed), SimpleNamespace(step=step)
        cell = SimpleNamespace(number=0, config=SimpleNamespace(train=train), progress=progress)
        monkeypatch.setattr(steps, "rank", lambda: rank)
        with pytest.raises(InterruptedError):
            steps.take_step(engine, [cell], dict)
        return found[0]

    places = list(itertools.product((1, 2, 3), (0, 1, 2), (0, 1, 2)))
    assert len({drawn(*place) for place in places}) == len(places)
    assert [drawn(*place) for place in places] == [drawn(*place) for place in places]


def kill_after(config: str, log: Path, lines: int) -> None:
    """Train on two ranks and kill -9 both once the log has so many lines."""
    processes = start_ranks(["flare_ds", "train", config], 2)
    deadline = time.monotonic() + 240
    while not (log.exists() and len(log.read_text().splitlines()) >= lines):
        assert all(process.poll() is None for process in processes), processes[0].communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.communicate()


def test_killed_and_resumed_is_bit_for_bit_the_same(root: Path) -> None:
    options = {"steps": 12, "batch_size": 16, "micro_batch_size": 4, "validate_every": 4, "save_every": 3}
    straight = toy_settings(root, method="flare", name="straight", **options)
    broken = toy_settings(root, method="flare", name="broken", **options)
    for settings in (straight, broken):
        settings["adapter"] = {"dropout": 0.2}
    run_ranks(["flare_ds", "train", str(write_config(straight))], 2)
    config = str(write_config(broken))
    for lines in (5, 9):
        kill_after(config, root / "broken/train_log.jsonl", lines)
    run_ranks(["flare_ds", "train", config], 2)
    for file in ("adapter/adapter_model.safetensors", "state/state.safetensors"):
        left, right = load_file(root / "straight" / file), load_file(root / "broken" / file)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left), file

    def losses(name: str) -> list:
        lines = [json.loads(line) for line in (root / name / "train_log.jsonl").read_text().splitlines()]
        return [(line["step"], line.get("loss"), line.get("validation_loss")) for line in lines]

    assert losses("broken") == losses("straight")


def test_resume_on_another_number_of_ranks(root: Path) -> None:
    options = {"steps": 9, "validate_every": 3, "save_every": 3}
    straight = toy_settings(root, method="flare", name="on-two", **options)
    moved = toy_settings(root, method="flare", name="moved", **options)
    run_ranks(["flare_ds", "train", str(write_config(straight))], 2)
    kill_after(str(write_config(moved)), root / "moved/train_log.jsonl", 6)
    run_ranks(["flare_ds", "train", str(write_config(moved))], 3)  # shares of the state are padded on 3 ranks

    def losses(name: str) -> list[float]:
        lines = map(json.loads, (root / name / "train_log.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if "loss" in line]

    np.testing.assert_allclose(losses("moved"), losses("on-two"), rtol=1e-4)


def test_a_changed_run_is_not_continued(learned: Path) -> None:
    outputs = run_ranks(["flare_ds", "train", str(learned), "train.learning_rate=0.5"], 2, expect=1)
    assert "train.learning_rate=0.01, not 0.5" in outputs[0] and "run_dir" in outputs[0]
