"""source_lora is a lora with the languages exchanged: the same rows, losses, and adapter, bit by bit."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

import flare_ds
from flare_ds.runs.directory import ADAPTER_WEIGHTS, TRAIN_LOG
from tests.toy import toy_settings


def trained(root: Path, method: str, **languages: str) -> Path:
    settings = toy_settings(root, method=method, name=method, steps=4, validate_every=2, whole_model=True)
    settings["task"] |= languages
    return flare_ds.train(settings)


def test_it_is_lora_with_the_languages_exchanged(tmp_path: Path) -> None:
    runs = trained(tmp_path, "source_lora"), trained(tmp_path, "lora", source_language="pl", target_language="en")
    logs, adapters = [], []
    for run in runs:
        events = map(json.loads, (run / TRAIN_LOG).read_text(encoding="utf-8").splitlines())
        logs.append([(event["step"], event["loss"]) for event in events if "loss" in event])
        adapters.append(load_file(run / ADAPTER_WEIGHTS))
    assert len(logs[0]) >= 4 and logs[0] == logs[1]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
