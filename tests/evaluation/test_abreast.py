"""Cells that are asked abreast say what each of them says alone, and read what they share once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flare_ds.batches.joined import join
from flare_ds.data.cache import Cache, CacheSplit
from flare_ds.data.cache.format import Manifest
from flare_ds.evaluation import abreast
from flare_ds.evaluation.abreast import ranked_abreast
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.ranked import Ranked, score_labels
from flare_ds.models.loading import load_shape
from flare_ds.settings import load_config
from flare_ds.training.cell import Cell
from flare_ds.training.loop import open_cells
from flare_ds.training.run import open_run
from tests.by_hand import make_config
from tests.toy import toy_settings, write_config, write_data, write_model

CELLS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("flare", "pl", "lockstep", {}),
    ("lora", "de", "lockstep", {}),
    ("source_prefix", "pl", "lockstep", {}),
    ("input_fusion", "de", "lockstep", {}),
    ("flare", "de", "lockstep", {"pairing": "module"}),
    ("source_prefix", "de", "cached", {}),
    ("flare", "pl", "cached", {"pairing": "output", "fused_modules": ["q_proj", "v_proj"]}),
    ("x_mixup", "de", "lockstep", {}),
]
"""Method, language, where what is read of the source comes from, and the adapter."""
WORDS = [[5, 6], [5, 7], [8, 6], [8, 9]]
"""Two and two begin alike: to tell them apart takes two forwards."""


class Rolled(Cache):
    """A cache whose rows stand in another order."""

    def split(self, name: str) -> CacheSplit:
        return _Rolled(self.path, self.manifest, name)


class _Rolled(CacheSplit):
    def __init__(self, directory: Path, manifest: Manifest, name: str) -> None:
        super().__init__(directory, manifest, name)
        self.labels, self.clusters = np.roll(self.labels, -7), np.roll(self.clusters, -7)

    def ids(self, index: int) -> str:
        return super().ids((index + 7) % len(self))

    def prompt_lengths(self, stream: str) -> np.ndarray:
        return np.roll(super().prompt_lengths(stream), -7)

    def lengths(self, stream: str) -> np.ndarray:
        return np.roll(super().lengths(stream), -7)

    def prompt(self, stream: str, index: int) -> np.ndarray:
        return super().prompt(stream, (index + 7) % len(self))

    def answer(self, stream: str, index: int) -> np.ndarray:
        return super().answer(stream, (index + 7) % len(self))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("abreast")
    write_model(root / "model")
    write_data(root / "data", languages=("en", "pl", "de"))
    return root


def opened(root: Path, place: str, **train: Any) -> list[Cell]:
    """Cells over one base, each with its adapter as it is made."""
    cells = []
    for number, (method, language, provider, adapter) in enumerate(CELLS):
        made = toy_settings(root, method=method, name=f"{place}-{number}", steps=2, whole_model=True, **train)
        made["task"] |= {"target_language": language, "test_rows": 30}
        made |= {"adapter": adapter, "evaluate": {"batch_size": 4}, "source": {"provider": provider}}
        config = load_config(write_config(made))
        cells.append(Cell(config, open_run(config, train=True), load_shape(config.model)))
    open_cells(cells)
    return cells


def moved(cells: list[Cell]) -> list[Cell]:
    """Cells whose adapters do something."""
    torch.manual_seed(0)
    with torch.no_grad():
        for cell in cells:
            for parameter in cell.running.model.trained().values():
                parameter.normal_(0, 0.2)
    return cells


def asked(cell: Cell, cache: Cache) -> Asked:
    return Asked(cell.running, cache, cell.config, cell.states)


def check_as_alone(cells: list[Cell], caches: list[Cache], together: list[Ranked | None]) -> None:
    for cell, cache, ranked in zip(cells, caches, together, strict=True):
        alone = score_labels(asked(cell, cache), "test", metric="accuracy")
        columns = [name for name in alone.records[0] if name.startswith("log_probability_")]
        wanted = np.array([[record[column] for column in columns] for record in alone.records])
        assert ranked is not None and ranked.seconds > 0
        assert np.abs(np.array(ranked.log_probabilities) - wanted).max() < 2e-5, cell.config.method
        assert np.ptp(wanted, axis=0).min() > 0.01, "rows differ, so their order matters"


@pytest.mark.parametrize("words", [None, WORDS])
def test_cells_say_abreast_what_they_say_alone(
    root: Path, words: list[list[int]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = moved(opened(root, f"words-{words is None}", objective="labels" if words is None else "vocabulary"))
    caches = [cell.cache for cell in cells]
    caches[4] = Rolled(caches[4].path, caches[4].manifest)
    if words is not None:
        caches = [
            type(cache)(cache.path, cache.manifest.model_copy(update={"labels": list("abcd"), "label_tokens": words}))
            for cache in caches
        ]
    read: list[int] = []

    def noted(batches: Any, apart: Any) -> Any:
        batch = join(batches, apart)
        read.append(batch.sources)
        return batch

    monkeypatch.setattr(abreast, "join", noted)
    together = ranked_abreast([asked(cell, cache) for cell, cache in zip(cells, caches, strict=True)], "test")
    check_as_alone(cells, caches, together)
    forwards = 1 if words is None else 2
    assert sum(read) == 30 * forwards, "three cells read the same sources; those that x_mixup reads are its own"


def test_of_untrained_cells_that_read_the_same_one_is_asked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = opened(root, "untrained")
    caches = [cell.cache for cell in cells]
    caches[4] = Rolled(caches[4].path, caches[4].manifest)
    read = set[int]()

    def noted(batches: Any, apart: Any) -> Any:
        read.update(batches)
        return join(batches, apart)

    monkeypatch.setattr(abreast, "join", noted)
    cells_asked = [asked(cell, cache) for cell, cache in zip(cells, caches, strict=True)]
    check_as_alone(cells, caches, ranked_abreast(cells_asked, "test", untrained=True))
    assert read == {0, 1, 2, 3, 5, 7}, "flare reads what lora does, stored or not, in any order"


@pytest.mark.parametrize(("method", "speakers"), [("x_mixup", [0, 0, 2]), ("flare", [0, 0, 0])])
def test_untrained_cells_that_mix_otherwise_speak_for_themselves(method: str, speakers: list[int]) -> None:
    """At first a mixture is a fixed share of the source, where a fused source changes nothing."""
    cells = [
        SimpleNamespace(config=make_config(method=method, mixup={"ratio": ratio}), cache=SimpleNamespace(path="one"))
        for ratio in (0.5, 0.5, 0.3)
    ]
    assert abreast._speakers(cells) == speakers  # type: ignore[arg-type]


def test_a_cell_with_other_rows_or_label_words_is_asked_alone(root: Path) -> None:
    cells = moved(opened(root, "others"))
    shorter = load_config(Path(cells[1].config.run_dir).with_suffix(".yaml"), ["task.test_rows=20"])
    other = open_run(shorter.model_copy(update={"run_dir": str(root / "shorter")}), train=True)
    words = cells[2].cache.manifest.model_copy(update={"label_tokens": cells[2].cache.label_tokens[::-1]})
    caches = [cells[0].cache, other, Cache(cells[2].cache.path, words), *(cell.cache for cell in cells[3:])]
    found = ranked_abreast([asked(cell, cache) for cell, cache in zip(cells, caches, strict=True)], "test")
    assert [ranked is None for ranked in found] == [number in (1, 2) for number in range(len(CELLS))]
