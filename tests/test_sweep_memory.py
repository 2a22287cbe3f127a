"""The memory that a dry run shows is what the cells' own training would say; nothing where it cannot be known yet."""

import re
from pathlib import Path

import pytest
import yaml

from flare_ds.cli import main
from flare_ds.human import human_size
from flare_ds.models.loading import load_shape
from flare_ds.runtime.memory import estimate_memory, joint_memory
from flare_ds.sweep.dry_run import dry_run
from flare_ds.sweep.plan import PlannedRun, load_sweep
from flare_ds.training.cell import Cell
from flare_ds.training.run import open_run
from tests.toy import toy_settings

GRID = {"languages": ["pl"], "methods": ["zero_shot", "lora", "flare", "input_fusion"], "seeds": [1]}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    base = toy_settings(tmp_path, micro_batch_size=3)
    del base["method"], base["run_dir"], base["task"]["target_language"]
    path = tmp_path / "sweep.yaml"
    settings = {"out": str(tmp_path / "out"), "ranks": 2, "base": base, "grid": GRID, "together": "auto"}
    path.write_text(yaml.safe_dump(settings))
    return path


def shown(path: Path, *overrides: str) -> dict[str, str]:
    """The memory of each stage."""
    lines = [re.split(r" *\| *", line.strip("| ")) for line in dry_run(path, overrides).splitlines() if "|" in line]
    assert lines[0][-1] == "memory"
    return {line[0]: line[-1] for line in lines[2:]}


def prepared(path: Path, run: PlannedRun) -> None:
    overrides = path.with_name("run.yaml")
    overrides.write_text(run.config.to_yaml())
    main(["prepare", str(overrides)])


def test_memory_is_shown_once_the_rows_are_known(sweep: Path) -> None:
    assert set(shown(sweep).values()) == {"-"}
    runs = load_sweep(sweep).cells
    prepared(sweep, runs[1])
    memory = shown(sweep)
    cells = [Cell(run.config, open_run(run.config, train=True), load_shape(run.config.model)) for run in runs[1:]]
    configs, loads = [cell.config for cell in cells], [cell.feed.load for cell in cells]
    shape = cells[0].shape
    together = joint_memory(configs, shape, loads, whole=True).needed
    assert memory["pl/lora-seed1 and 2 more"] == human_size(together)
    assert memory["pl/zero_shot-seed1"] == "-", "it trains nothing"
    alone, shared = shown(sweep, "together=1"), shown(sweep, "together=1", "base.train.whole_model=false")
    for cell, load in zip(cells, loads, strict=True):
        name = f"pl/{cell.config.method}-seed1"
        whole, of_two = (estimate_memory(cell.config, shape, streams=load.streams, ranks=ranks) for ranks in (None, 2))
        assert alone[name] == human_size(whole.bytes(load.tokens))
        assert shared[name] == human_size(of_two.bytes(load.tokens))
    launched = shown(sweep, "ranks=null", "launch=torchrun --nproc-per-node 2 -m", "base.train.whole_model=false")
    assert launched["pl/lora-seed1 and 2 more"] == "-", "how many ranks share the base is the command's own affair"


def test_a_base_that_is_not_there_yet_has_the_shape_of_the_untuned_one(sweep: Path) -> None:
    prepared(sweep, load_sweep(sweep).cells[1])
    assert shown(sweep, "stage1={}")["pl/lora-seed1 and 2 more"] == shown(sweep)["pl/lora-seed1 and 2 more"] != "-"


def test_cells_that_lack_their_cache_are_not_among_those_to_do(sweep: Path) -> None:
    both = ["grid.languages=[pl, es]", "together=1"]
    prepared(sweep, load_sweep(sweep, both).cells[1])
    said = dry_run(sweep, both, only=["cells"])
    assert said.count("lacks prepare en-es") == 4 and said.splitlines()[-1] == "to do: 4 cells in 4 commands"
