"""How large a batch of held-out rows is, and that nothing said of a row depends on it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flare_ds.config import Config
from flare_ds.data.cache import open_cache, prepare_cache
from flare_ds.evaluation import batch_size, batches
from flare_ds.evaluation.answerable import with_whole_head
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.batch_size import batch_limits
from flare_ds.evaluation.split import score_split
from flare_ds.models.loading import load_tokenizer
from flare_ds.models.two_stream import build_model
from flare_ds.runtime import memory
from flare_ds.runtime.engine import RunningModel, trainable_parameters
from tests.by_hand import make_config
from tests.evaluation.generate_worker import random_adapter
from tests.small_models import small_model
from tests.toy import toy_settings

ROWS = SimpleNamespace(lengths=lambda _: np.array([5, 9]), prompt_lengths=lambda _: np.array([4, 7]))


def limits(config: Config, lengths: list[int], device: str = "cpu", **asked: Any) -> tuple[int, int | None]:
    running: Any = SimpleNamespace(device=torch.device(device), model=SimpleNamespace(base=small_model("llama")[0]))
    return batch_limits(running, ROWS, config, np.array(lengths), **{"written": 0, "words": False, **asked})  # type: ignore[arg-type]


def of(**evaluate: object) -> Config:
    config = make_config(method="lora")
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update=evaluate)})


def test_what_the_settings_say_wins() -> None:
    assert limits(of(batch_size=3), [9] * 500) == (3, None)
    assert limits(of(batch_size=3, batch_tokens=7), [9] * 500) == (3, 7)
    assert limits(of(batch_tokens=7), [9] * 500) == (500, 7)


def test_cells_that_read_the_rows_in_one_forward_share_what_is_set() -> None:
    assert limits(of(batch_size=6), [9] * 500, cells=2) == (3, None)
    assert limits(of(batch_size=6, batch_tokens=70), [9] * 500, cells=4) == (1, 17)
    assert limits(of(batch_tokens=70), [9] * 500, cells=4) == (500, 17)
    assert limits(of(batch_size=6), [9] * 500, cells=7) == (1, None)


def test_a_batch_is_as_large_as_is_good_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_available", lambda on: 1e12)
    assert limits(of(), [100] * 5000) == (5000, 2048)
    assert limits(of(), [100] * 5000, "cuda") == (5000, 100 * 5000 // 16)
    assert limits(of(), [100] * 50, "cuda") == (50, 2048)
    monkeypatch.setattr(memory, "_available", lambda on: 1e6)
    fitting = limits(of(), [100] * 50)[1]
    assert 1 <= fitting < 2048 and fitting & (fitting - 1) == 0
    assert limits(of(), [100] * 50, written=900)[1] < fitting
    monkeypatch.setattr(memory, "_available", lambda on: 1.1e6)
    assert (limits(of(), [4] * 50)[1], limits(of(), [4] * 50, words=True)[1]) == (256, 128)
    monkeypatch.setattr(memory, "_available", lambda on: 0.0)
    assert limits(of(), [100] * 50) == (50, 1), "each row alone"


def test_all_ranks_take_what_fits_on_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "gather_objects", lambda mine: [mine, 64, 512])
    assert limits(of(), [100] * 50) == (50, 64)


@pytest.mark.parametrize("answers", ["ranked", "generated"])
def test_scores_do_not_depend_on_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str) -> None:
    settings = toy_settings(tmp_path)
    settings["task"]["test_rows"] = 23
    settings |= {"evaluate": {"answers": answers}, "generate": {"max_new_tokens": 3}}
    config = Config.model_validate(settings)
    asked = with_whole_head(config) if answers == "generated" else config
    cache = open_cache(prepare_cache(config, load_tokenizer(config.model)))
    model = build_model(asked, label_tokens=cache.label_tokens).eval()
    for name, value in random_adapter(trainable_parameters(model)).items():
        model.get_parameter(name).data.copy_(value)
    running, rows_in_a_batch = RunningModel(model, model), []
    collate = batches.collate
    monkeypatch.setattr(batches, "collate", lambda *a, **k: rows_in_a_batch.append(len(a[1].rows)) or collate(*a, **k))
    found, largest = [], []
    for evaluate in ({"batch_size": 1}, {"batch_size": 5, "batch_tokens": 200}, {}):
        rows_in_a_batch.clear()
        own = asked.model_copy(update={"evaluate": asked.evaluate.model_copy(update=evaluate)})
        found.append(score_split(Asked(running, cache, own), "test").records)
        largest.append(max(rows_in_a_batch))
    assert largest == [1, 5, 23] and sum(rows_in_a_batch) == 23
    alone = found[0]
    assert [record["id"] for record in alone] == [cache.split("test").ids(row) for row in range(23)]
    for records in found[1:]:
        for record, expected in zip(records, alone, strict=True):
            assert record == pytest.approx(expected, abs=1e-5)
