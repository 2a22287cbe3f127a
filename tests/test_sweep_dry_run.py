"""What a sweep says it would do, before it does anything; tests/sweep_bench.py plays its commands."""

import json
import re
from pathlib import Path

import pytest

from flare_ds.sweep.dry_run import dry_run
from flare_ds.sweep.local import sweep
from tests.sweep_bench import CELLS, Bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_dry_run_says_what_there_is_to_do_and_writes_nothing(bench: Bench) -> None:
    shown = dry_run(bench.path)
    assert not bench.out.exists()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines() if "|" in line][2:]
    assert [line[0] for line in lines] == ["prepare en", "prepare en-pl", "stage1", "stage1 evaluate", *CELLS]
    assert lines[4][1:] == ["prepare en-pl, stage1", "to do", "-", "-"]
    assert "to do: 2 prepare, 2 stage1, 5 cells in 5 commands; then the report" in shown
    assert ", 5 cells in 2 commands; then the report" in dry_run(bench.path, ["together=auto"])
    sweep(bench.path, ["grid.methods=[zero_shot, lora]"])
    record = bench.out / "sweep.json"
    content = json.loads(record.read_text())
    content["nodes"]["pl/lora-seed1"]["seconds"] = content["nodes"]["pl/lora-seed2"]["seconds"] = 7200.0
    record.write_text(json.dumps(content))
    grown = ["methods.lora.train.steps=41", "grid.methods=[lora, flare]", "grid.seeds=[1, 2, 3]"]
    shown = re.sub(" +", " ", dry_run(bench.path, grown))
    needs = "prepare en-pl, stage1"
    assert f"| pl/lora-seed1 | {needs} | changed: train.steps=40, but the sweep now has train.steps=41 |" in shown
    assert f"| pl/lora-seed3 | {needs} | to do | 2 hours |" in shown
    assert "about 6 hours left, and 3 whose time is not known" in shown
    refused = "moves changed runs aside (without it, the sweep is refused)"
    assert f"\nto do, with --rerun changed, which {refused}: 1 prepare, 6 cells" in shown
    assert record.read_text() == json.dumps(content)
    shown = re.sub(" +", " ", dry_run(bench.path, ["grid.methods=[zero_shot, lora]", "stage1.train.steps=61"]))
    assert "| pl/lora-seed1 | prepare en-pl, stage1 | to do |" in shown, "it stands on what changes"
    assert "): 2 prepare, 2 stage1, 3 cells in 3 commands" in shown, "the stand-in makes no caches"


def test_a_dry_run_of_some_parts_shows_these_and_what_they_lack(bench: Bench) -> None:
    def shown(*only: str) -> tuple[list[str], str]:
        said = dry_run(bench.path, ["grid.methods=[zero_shot, lora]"], only=only)
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if "|" in line][2:]
        return [f"{row[0]}: {row[2]}" for row in rows], said.splitlines()[-1]

    assert shown("prepare") == (["prepare en: to do", "prepare en-pl: to do"], "to do: 2 prepare")
    names = ["pl/zero_shot-seed1", "pl/lora-seed1", "pl/lora-seed2"]
    lacking = [f"{name}: lacks prepare en-pl" for name in names]
    assert shown("cells", "report") == (lacking, "to do: nothing; then the report")
    assert shown("report") == ([], "to do: nothing; then the report")
    cells, to_do = shown("prepare", "cells")
    assert cells[2:] == [f"{name}: lacks stage1" for name in names] and to_do == "to do: 2 prepare"
    cells, to_do = shown("prepare", "stage1", "cells")
    assert cells[4:] == [f"{name}: to do" for name in names]
    assert to_do == "to do: 2 prepare, 2 stage1, 3 cells in 3 commands"


def test_a_dry_run_counts_the_cells_that_are_left_of_a_group(bench: Bench) -> None:
    together = ["together=auto", "grid.methods=[lora, flare]"]
    sweep(bench.path, together)
    grown = [*together, "grid.seeds=[1, 2, 3]"]
    shown = re.sub(" +", " ", dry_run(bench.path, grown))
    assert "| pl/lora-seed1 and 3 more | prepare en-pl, stage1 | finished |" in shown
    assert "| pl/lora-seed3 and 1 more | prepare en-pl, stage1 | to do |" in shown
    assert ", 2 cells in 1 commands; then the report" in shown
    shown = dry_run(bench.path, [*grown, "methods.flare.adapter.r=4"])
    assert ", 4 cells in 1 commands; then the report" in shown, "two that changed are run again"
    bench.calls()
    sweep(bench.path, grown)
    assert bench.calls()[-1] == "train pl/lora-seed3 pl/flare-seed3 --evaluate"
