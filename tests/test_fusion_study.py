"""The study runner: what it trains and skips, what its tables say; one real run, the others by a stand-in."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from flare_ds.exceptions import ConfigError
from tests.distributed import REPOSITORY
from tests.toy import toy_settings

SCRIPT = REPOSITORY / "benchmarks/fusion_study.py"
STAND_IN = """#!/bin/sh
echo "$@" >> {calls}
case "$*" in *"train "*{failing}*) exit 3;; esac
"""


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/fusion_study.py, which imports what it needs from its own directory."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("fusion_study")


class Bench:
    """A study below a directory, and by hand what its runs left behind."""

    def __init__(self, root: Path) -> None:
        self.out, self.path = root / "out", root / "study.yaml"
        self.settings: dict[str, Any] = {
            "out": str(self.out),
            "launch": "launcher --module",
            "base": {
                "method": "flare",
                "deepspeed": "ds.json",
                "model": {"base": "model"},
                "task": {"name": "multiemo", "data_dir": "data", "target_language": "pl"},
                "train": {"steps": 40},
            },
            "variants": {"lora": "method=lora", "paper": "", "wide": "adapter.r=16 'adapter.fused_modules=[q_proj]'"},
            "questions": [
                {"title": "Does it help?", "against": "lora", "seeds": [1, 2], "variants": ["lora", "paper"]},
                {"title": "Wider?", "against": "paper", "seeds": [1], "variants": ["wide"]},
            ],
        }
        self.write()

    def write(self) -> None:
        self.path.write_text(yaml.safe_dump(self.settings))

    def trained(self, name: str, *, score: float, loss: float) -> None:
        """Leave what training leaves: the best validation was the one after step 20."""
        directory = self.out / name
        directory.mkdir(parents=True, exist_ok=True)
        losses = {10: 9.0, 20: loss, 40: 8.0}
        lines = [{"step": step, "loss": 5.0} for step in (10, 20, 40)]
        lines += [{"step": step, "validation_loss": value} for step, value in losses.items()]
        (directory / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        summary = {
            "best_validation_score": score,
            "best_step": 20,
            "median_step_seconds": 2.0,
            "trained_parameters": 1234,
            "train_seconds": 1800.0,
        }
        (directory / "training.json").write_text(json.dumps(summary))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def cells(table: str, variant: str) -> list[str]:
    """The cells of a variant's line."""
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {variant} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_runs_are_the_questions_each_once(runner: ModuleType, bench: Bench) -> None:
    study = runner.load_study(bench.path, ["base.adapter.alpha=32"])
    assert list(study.runs) == [("lora", 1), ("paper", 1), ("lora", 2), ("paper", 2), ("wide", 1)]
    wide = study.runs["wide", 1]
    assert wide.directory == bench.out / "wide-seed1" == Path(wide.config.run_dir)
    assert (wide.config.method, wide.config.train.seed, wide.config.adapter.r) == ("flare", 1, 16)
    assert wide.config.adapter.fused_modules == ["q_proj"] and wide.config.adapter.alpha == 32
    assert study.runs["lora", 2].config.method == "lora" and study.runs["lora", 2].config.adapter.r == 8


def test_the_tables(runner: ModuleType, bench: Bench) -> None:
    for name, score, loss in [
        ("lora-seed1", 0.60, 0.90),
        ("paper-seed1", 0.64, 0.80),
        ("lora-seed2", 0.70, 0.88),
        ("paper-seed2", 0.72, 0.82),
    ]:
        bench.trained(name, score=score, loss=loss)
    (bench.out / "wide-seed1").mkdir()
    (bench.out / "wide-seed1/train_log.jsonl").write_text('{"step": 7, "loss": 5.0}\n')
    head, first, second = runner.tables(runner.load_study(bench.path, [])).split("###")
    assert head.strip() == "4 of 5 runs are trained; their steps took 2.0 hours."
    assert cells(first, "lora")[:7] == ["lora", "`method=lora`", "1, 2", "0.650", "-", "0.890", "-"]
    # Differences .04 and .02: mean .03, standard deviation .0141, over the root of 2 .010; those of the loss likewise.
    assert cells(first, "paper")[2:7] == ["1, 2", "0.680", "+0.030 ± 0.010", "0.810", "-0.080 ± 0.020"]
    assert cells(first, "paper")[7:] == ["2.00 s", "1,234"]
    assert cells(second, "wide")[2:] == ["unfinished: 1 trained 7 of 40 steps", *["-"] * 6]


def test_a_change_needs_the_same_seed_and_its_error_two(runner: ModuleType, bench: Bench) -> None:
    bench.trained("lora-seed1", score=0.6, loss=0.9)
    bench.trained("paper-seed2", score=0.7, loss=0.8)
    table = runner.tables(runner.load_study(bench.path, []))
    assert cells(table, "paper")[2:5] == ["2; unfinished: 1 not started", "0.700", "-"]
    bench.trained("lora-seed2", score=0.66, loss=0.9)
    table = runner.tables(runner.load_study(bench.path, []))
    assert cells(table, "paper")[4] == "+0.040", "one difference has no spread"


def test_the_spread_is_of_all_comparisons(runner: ModuleType, bench: Bench) -> None:
    bench.settings["questions"][1]["seeds"] = [1, 2, 3]
    bench.write()
    for seed, lora, paper, wide in [(1, 0.5, 0.6, 0.60), (2, 0.5, 0.6, 0.62), (3, None, 0.6, 0.64)]:
        for name, score in (("lora", lora), ("paper", paper), ("wide", wide)):
            if score is not None:
                bench.trained(f"{name}-seed{seed}", score=score, loss=1.0)
    table = runner.tables(runner.load_study(bench.path, []))
    # Squares: 0 with one degree of freedom, .0008 with two; so .01633 for a difference.
    assert cells(table, "paper")[4] == "+0.100 ± 0.012" and cells(table, "wide")[4] == "+0.020 ± 0.009"


def test_the_spread_joins_the_seeds_of_questions_that_compare_the_same(runner: ModuleType, bench: Bench) -> None:
    first = bench.settings["questions"][0]
    bench.settings["questions"] = [first | {"seeds": [1, 2]}, first | {"seeds": [3]}]
    bench.write()
    for seed, paper in [(1, 0.60), (2, 0.62), (3, 0.64)]:
        bench.trained(f"lora-seed{seed}", score=0.5, loss=1.0)
        bench.trained(f"paper-seed{seed}", score=paper, loss=1.0)
    _, of_two, of_one = runner.tables(runner.load_study(bench.path, [])).split("###")
    # Of all three differences together .02.
    assert cells(of_two, "paper")[4] == "+0.110 ± 0.014" and cells(of_one, "paper")[4] == "+0.140 ± 0.020"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("questions=1", "is not a study"),
        ("seeds=[1]", "is not a study"),
        ("variants={lora: method=lora}", "has no variant 'paper'"),
        ("variants.paper=adapter.pairng=input", "unknown setting 'adapter.pairng'"),
    ],
)
def test_a_wrong_study_is_told(runner: ModuleType, bench: Bench, override: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        runner.load_study(bench.path, [override])


def test_trains_what_is_not_trained_and_goes_on_after_a_failure(
    runner: ModuleType, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, stand_in = tmp_path / "calls.txt", tmp_path / "stand_in"
    stand_in.write_text(STAND_IN.format(calls=calls, failing="paper-seed1"))
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    bench.settings["launch"] = f"{stand_in} --port {{free_port}} --module"
    bench.write()
    bench.trained("lora-seed1", score=0.6, loss=0.9)
    failed = runner.train_all(runner.load_study(bench.path, []))
    assert [run.directory.name for run in failed] == ["paper-seed1"]
    lines = [line.split() for line in calls.read_text().splitlines()]
    assert all(line[1].isdecimal() for line in lines[1::2]), "a free port"
    names = ["paper-seed1", "lora-seed2", "paper-seed2", "wide-seed1"]
    assert lines[::2] == [["-m", "flare_ds", "prepare", str(bench.out / name)] for name in names]
    assert [line[2:] for line in lines[1::2]] == [
        ["--module", "flare_ds", "train", str(bench.out / name / "config.yaml")] for name in names
    ]
    with pytest.raises(ConfigError, match="paper-seed1 was trained with other settings"):
        runner.load_study(bench.path, ["base.train.steps=41"])


def test_a_real_run(tmp_path: Path) -> None:
    base = toy_settings(tmp_path, steps=2, validate_every=2)
    del base["run_dir"]
    study = tmp_path / "study.yaml"
    question = {"title": "One", "against": "add", "seeds": [3], "variants": ["add"]}
    launch = "deepspeed --num_accelerators 1 --master_port {free_port} --module"
    written = {"out": "unset", "launch": launch, "base": base, "questions": [question]}
    study.write_text(yaml.safe_dump(written | {"variants": {"add": "adapter.fusion=add"}}))
    command = [sys.executable, str(SCRIPT), str(study), f"out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    table = (tmp_path / "out/tables.md").read_text()
    assert table.strip() in done.stdout
    training = json.loads((tmp_path / "out/add-seed3/training.json").read_text())
    found = cells(table, "add")
    assert found[:4] == ["add", "`adapter.fusion=add`", "3", f"{training['best_validation_score']:.3f}"]
    assert float(found[5]) > 0 and found[8] == f"{training['trained_parameters']:,}"
    again = subprocess.run([*command, "--table-only"], capture_output=True, text=True, timeout=300)
    assert again.stdout.strip() == table.strip() and "run 1" in done.stderr and "run 1" not in again.stderr
