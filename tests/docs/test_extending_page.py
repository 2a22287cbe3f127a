"""docs/extending.md: its examples run as they are printed, and do what it says; the names that it gives are there."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import flare_ds
from flare_ds.adapters.fusion import FUSIONS
from flare_ds.methods import METHODS
from tests.by_hand import build, make_config, make_oracle, make_rows, oracle_base
from tests.docs.blocks import blocks
from tests.models.test_two_stream import assert_equal_to_oracle
from tests.oracle import Oracle
from tests.toy import REPOSITORY, toy_settings

PAGE = REPOSITORY / "docs/extending.md"


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict]:
    """What the page's Python leaves, where its reader has a run.yaml; what it registers is forgotten afterwards."""
    for registry in (FUSIONS, METHODS):
        monkeypatch.setattr(registry, "_things", dict(registry._things))
    settings = toy_settings(tmp_path, name="run", steps=2, validate_every=2, whole_model=True)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base").symlink_to(tmp_path / "model")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks(PAGE):
        exec(compile(block.text, block.place, "exec"), names)
    yield names


def difference(self: Oracle, name: str, s: Tensor, so_far: list[Tensor]) -> Tensor:
    return so_far[-1] - s


def test_its_examples_are_what_it_says(typed: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    the_function_trains(typed["fused"])
    monkeypatch.setattr(Oracle, "phi", difference)
    config = make_config(fusion="difference")
    model = build("llama", config)
    assert_equal_to_oracle(model, make_oracle(model, oracle_base("llama"), config), config, make_rows())
    the_method_adds_the_sources_scores(typed["run"])


def the_function_trains(fused: torch.nn.Module) -> None:
    """Two steps on one row."""
    optimizer = torch.optim.AdamW([p for p in fused.parameters() if p.requires_grad], lr=0.01)
    row = {"input_ids": [5, 6, 7, 8], "source_input_ids": [9, 10], "labels": [-100, -100, -100, 8]}
    losses = []
    for _ in range(3):
        loss, _ = fused(**{name: torch.tensor([ids]) for name, ids in row.items()})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def the_method_adds_the_sources_scores(run: Path) -> None:
    """As often as `evaluate.late` says, and once if it says nothing."""
    texts = {"target": ["word1", "word2 word3"], "source": ["great", "awful word4"]}
    once, twice, thrice = (
        flare_ds.load(run, overrides=[f"evaluate.late={weight}"]).scores(**texts) for weight in (1, 2, 3)
    )
    np.testing.assert_allclose(flare_ds.load(run).scores(**texts), once, atol=1e-6)
    above = [scores[:, 1:] - scores[:, :1] for scores in (once, twice, thrice)]
    np.testing.assert_allclose(above[2] - above[1], above[1] - above[0], atol=1e-4)
    assert np.abs(above[1] - above[0]).min() > 1e-3


def test_the_names_it_gives_are_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for file in re.findall(r"`((?:\w+/)+\w*(?:\.\w+)?)`", text):
        assert any((root / file).exists() for root in (REPOSITORY, REPOSITORY / "flare_ds")), file
    for name, file in re.findall(r"`(\w+)` (?:in|of) `((?:\w+/)+\w+\.py)`", text):
        root = REPOSITORY if file.startswith("tests/") else REPOSITORY / "flare_ds"
        assert re.search(rf"\b{name}\b", (root / file).read_text(encoding="utf-8")), f"{name} in {file}"
