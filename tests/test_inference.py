"""`flare_ds.load`: a run in this process alone, whatever else the process takes part in."""

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest

import flare_ds
from tests.alone_worker import said, texts_of
from tests.distributed import run_ranks
from tests.toy import toy_settings, write_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a method that trains nothing."""
    return write_config(toy_settings(tmp_path_factory.mktemp("inference"), method="zero_shot"))


def test_ranks_of_a_group_each_load_a_run_for_themselves(config: Path, tmp_path: Path) -> None:
    """With different texts, of different numbers, under torchrun or accelerate."""
    run_ranks(["tests.alone_worker", str(config), str(tmp_path)], 2, timeout=100)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        expected = said(str(config), tmp_path / f"run{rank}", texts_of(rank))
        assert found["run"] == expected["run"]
        np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-5)
        assert (found["labels"], found["written"]) == (expected["labels"], expected["written"])


def test_a_model_that_nobody_holds_makes_room_for_the_next(config: Path) -> None:
    """Its layers and what stands in for their forwards hold one another."""
    gc.collect()
    loaded = flare_ds.load(config, "cpu")
    weight = weakref.ref(loaded._predictor.running.model.base.model.layers[0].self_attn.q_proj.weight)
    del loaded
    flare_ds.load(config, "cpu")
    assert weight() is None
