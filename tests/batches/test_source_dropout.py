"""source_dropout: which rows lose their sources, and that a row which has is the row that never had one."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from flare_ds.batches.batching import MicroBatch
from flare_ds.batches.collate import Batch, StoredStates, collate
from flare_ds.batches.order import RowOrder
from flare_ds.batches.rows_read import rows_read
from flare_ds.batches.source_dropout import WithoutSources, WithoutStates, dropped_rows
from flare_ds.batches.workload import streams_of
from flare_ds.data.cache import Cache, open_cache, prepare_cache
from flare_ds.data.row_answers import Rows
from flare_ds.methods import METHODS
from flare_ds.models.loading import load_shape, load_tokenizer
from flare_ds.settings import parse_config
from flare_ds.training.feed import Feed
from tests.batches.test_rows_read import NEWLINE, PREFIX, SOURCES, ThreeRows
from tests.by_hand import build, make_config
from tests.forms import PAPER_FORM
from tests.toy import toy_settings, write_data, write_model

TOKENS = SimpleNamespace(prefix_ids=PREFIX, suffix_ids=[], newline_ids=NEWLINE)
METHODS_OF_ROWS = {name: METHODS.get(name) for name in METHODS}
READERS = [name for name, one in METHODS_OF_ROWS.items() if one.trains_on_source]


class NeverHad(ThreeRows):
    """The rows without any source."""

    streams = {**ThreeRows.streams, "source": [[], [], []]}  # noqa: RUF012

    def answer(self, stream: str, row: int) -> np.ndarray:
        return super().answer(stream, row)[: len(self.prompt(stream, row))]


class States:
    """Two states a token of the source."""

    def states(self, row: int) -> Tensor:
        return torch.ones(2 * len(SOURCES[row]), 1, 4)


def test_the_share_is_as_asked_and_the_draw_follows_from_seed_and_step() -> None:
    drawn = [dropped_rows(20_000, 0.3, seed=seed, step=step) for seed, step in [(1, 0), (1, 1), (2, 0)]]
    assert all(abs(one.mean() - 0.3) < 0.01 for one in drawn)
    assert all(abs((drawn[0] & other).mean() - 0.09) < 0.01 for other in drawn[1:]), "draws are independent"
    np.testing.assert_array_equal(drawn[0], dropped_rows(20_000, 0.3, seed=1, step=0))
    assert not dropped_rows(1000, 0.0, seed=1, step=0).any()
    first = RowOrder(20_000, 4000, seed=1).rows(0)
    assert abs(drawn[0][first].mean() - 0.3) < 0.03, "a row that comes early is dropped no more often than another"


def batch_of(rows: Rows, method: str, objective: str, stored: StoredStates | None = None) -> Batch:
    config = make_config(method=method, objective=objective)
    streams = ("target",) if stored else streams_of(config)
    return collate(
        rows_read(rows, config, TOKENS),
        MicroBatch(np.arange(3), np.ones(3, np.float32)),
        streams=streams,
        objective=objective,
        pad_id=0,
        source_targets=config.recipe.fuses == "mixup",
        stored=stored,
    )


@pytest.mark.parametrize("objective", ["labels", "vocabulary"])
@pytest.mark.parametrize("method", READERS)
def test_a_row_that_lost_its_source_is_one_that_never_had_any(method: str, objective: str) -> None:
    lost = batch_of(WithoutSources(ThreeRows(), np.ones(3, bool)), method, objective)
    never = batch_of(NeverHad(), method, objective)
    for name, value in vars(never).items():
        found = getattr(lost, name)
        assert torch.equal(found, value) if isinstance(value, Tensor) else found == value, name
    some = batch_of(WithoutSources(ThreeRows(), np.array([False, False, True])), method, objective)
    assert not torch.equal(some.input_ids, batch_of(ThreeRows(), method, objective).input_ids)


def test_states_go_with_their_source() -> None:
    for dropped, lengths in (([True, False, False], [0, 0, 4]), ([True, True, True], [0, 0, 0])):
        batch = batch_of(ThreeRows(), "flare", "labels", WithoutStates(States(), np.array(dropped)))
        assert batch.source_lengths_SB.tolist() == [lengths]


def test_a_batch_in_which_no_row_has_states_is_lora() -> None:
    config = make_config(objective="labels", provider="cached")
    model, lora = build("llama", config), build("llama", make_config(method="lora", objective="labels"))
    lora.load_state_dict(model.state_dict(), strict=False)
    empty = SimpleNamespace(states=lambda _: torch.zeros(0, 2, model.base.config.hidden_size))
    with torch.no_grad():
        found = model(batch_of(ThreeRows(), "flare", "labels", empty))
        torch.testing.assert_close(found, lora(batch_of(ThreeRows(), "lora", "labels")))


@pytest.mark.parametrize("provider", ["lockstep", "cached"])
def test_a_step_lays_out_the_rows_that_are_left(tmp_path: Path, provider: str) -> None:
    write_model(tmp_path / "model")
    write_data(tmp_path / "data", rows=60)
    found = toy_settings(tmp_path, steps=3, source_dropout=0.5)
    config = parse_config(found | {"adapter": PAPER_FORM, "source": {"provider": provider}}, origin="test")
    cache = open_cache(prepare_cache(config, load_tokenizer(config.model)))
    feed = Feed(config, cache, load_shape(config.model))
    if provider == "cached":
        feed.stored = SimpleNamespace(states=lambda _: torch.ones(4, 1, 64))
    there = []
    for step in range(3):
        portions = list(feed.portions(step))
        dropped_n = dropped_rows(len(cache.split("train")), 0.5, seed=config.train.seed, step=step)
        for portion in portions:
            lengths = portion.batch.source_lengths_SB[0, : len(portion.rows)]
            assert ((lengths == 0).numpy() == dropped_n[portion.rows]).all()
        there += [int((portion.batch.source_lengths_SB > 0).sum()) for portion in portions]
    assert 0 < sum(there) < 3 * config.train.batch_size


@pytest.mark.parametrize(("method", "draws"), [("flare", [0, 1, 2, 3]), ("lora", [])])
def test_a_step_that_reads_sources_draws_once_and_opens_no_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, draws: list[int]
) -> None:
    write_model(tmp_path / "model")
    write_data(tmp_path / "data", rows=60)
    config = parse_config(toy_settings(tmp_path, method=method, steps=4, source_dropout=0.5), origin="test")
    cache = open_cache(prepare_cache(config, load_tokenizer(config.model)))
    feed, drawn = Feed(config, cache, load_shape(config.model)), list[int]()

    def noted(rows: int, share: float, *, seed: int, step: int) -> np.ndarray:
        drawn.append(step)
        return dropped_rows(rows, share, seed=seed, step=step)

    monkeypatch.setattr("flare_ds.training.feed.dropped_rows", noted)
    monkeypatch.delattr(Cache, "split")
    for step in range(4):
        list(feed.portions(step))
    assert drawn == draws
