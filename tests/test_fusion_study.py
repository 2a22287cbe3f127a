"""The tables of a study: what they say of the variants of a sweep that are trained, by a stand-in for the training."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from flare_ds.exceptions import ConfigError
from tests.distributed import REPOSITORY


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/study_tables.py."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("study_tables")


class Bench:
    """A sweep and questions below a directory, and by hand what its runs left behind."""

    def __init__(self, root: Path) -> None:
        self.out, self.files = root / "out", (root / "sweep.yaml", root / "questions.yaml")
        grid = {"languages": ["pl"], "methods": ["lora", "paper", "wide"], "seeds": [1, 2, 3]}
        self.sweep: dict[str, Any] = {
            "out": str(self.out),
            "launch": "launcher --module",
            "score": "validation",
            "base": {
                "deepspeed": "ds.json",
                "model": {"base": "model"},
                "task": {"name": "multiemo", "data_dir": "data"},
                "train": {"steps": 40},
            },
            "grid": grid,
            "variants": {
                "paper": {"method": "flare"},
                "wide": {"method": "flare", "adapter.r": 16, "adapter": {"fused_modules": ["q_proj"]}},
            },
        }
        self.questions: list[dict[str, Any]] = [
            {"title": "Does it help?", "against": "lora", "seeds": [1, 2], "variants": ["lora", "paper"]},
            {"title": "Wider?", "against": "paper", "seeds": [1], "variants": ["wide"]},
        ]
        self.write()

    def write(self) -> None:
        for file, content in zip(self.files, (self.sweep, {"questions": self.questions}), strict=True):
            file.write_text(yaml.safe_dump(content))

    def trained(self, name: str, *, score: float, loss: float) -> None:
        """Leave what training leaves: the best validation was the one after step 20."""
        directory = self.out / "pl" / name
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


def test_the_tables(runner: ModuleType, bench: Bench) -> None:
    for name, score, loss in [
        ("lora-seed1", 0.60, 0.90),
        ("paper-seed1", 0.64, 0.80),
        ("lora-seed2", 0.70, 0.88),
        ("paper-seed2", 0.72, 0.82),
    ]:
        bench.trained(name, score=score, loss=loss)
    (bench.out / "pl/wide-seed1").mkdir()
    (bench.out / "pl/wide-seed1/train_log.jsonl").write_text('{"step": 7, "loss": 5.0}\n')
    head, first, second = runner.tables(runner.load_study(*bench.files)).split("###")
    assert head.strip() == "4 of 9 runs are trained; their steps took 2.0 hours."
    assert cells(first, "lora")[:7] == ["lora", "-", "1, 2", "0.650", "-", "0.890", "-"]
    # Differences .04 and .02: mean .03, standard deviation .0141, over the root of 2 .010; those of the loss likewise.
    assert cells(first, "paper")[2:7] == ["1, 2", "0.680", "+0.030 ± 0.010", "0.810", "-0.080 ± 0.020"]
    assert cells(first, "paper")[7:] == ["2.00 s", "1,234"]
    assert cells(second, "wide")[2:] == ["unfinished: 1 trained 7 of 40 steps", *["-"] * 6]


def test_a_change_needs_the_same_seed_and_its_error_two(runner: ModuleType, bench: Bench) -> None:
    bench.trained("lora-seed1", score=0.6, loss=0.9)
    bench.trained("paper-seed2", score=0.7, loss=0.8)
    table = runner.tables(runner.load_study(*bench.files))
    assert cells(table, "paper")[2:5] == ["2; unfinished: 1 not started", "0.700", "-"]
    bench.trained("lora-seed2", score=0.66, loss=0.9)
    table = runner.tables(runner.load_study(*bench.files))
    assert cells(table, "paper")[4] == "+0.040", "one difference has no spread"


def test_the_spread_is_of_all_comparisons(runner: ModuleType, bench: Bench) -> None:
    bench.questions[1]["seeds"] = [1, 2, 3]
    bench.write()
    for seed, lora, paper, wide in [(1, 0.5, 0.6, 0.60), (2, 0.5, 0.6, 0.62), (3, None, 0.6, 0.64)]:
        for name, score in (("lora", lora), ("paper", paper), ("wide", wide)):
            if score is not None:
                bench.trained(f"{name}-seed{seed}", score=score, loss=1.0)
    table = runner.tables(runner.load_study(*bench.files))
    # Squares: 0 with one degree of freedom, .0008 with two; so .01633 for a difference.
    assert cells(table, "paper")[4] == "+0.100 ± 0.012" and cells(table, "wide")[4] == "+0.020 ± 0.009"


def test_the_spread_joins_the_seeds_of_questions_that_compare_the_same(runner: ModuleType, bench: Bench) -> None:
    first = bench.questions[0]
    bench.questions = [first | {"seeds": [1, 2]}, first | {"seeds": [3]}]
    bench.write()
    for seed, paper in [(1, 0.60), (2, 0.62), (3, 0.64)]:
        bench.trained(f"lora-seed{seed}", score=0.5, loss=1.0)
        bench.trained(f"paper-seed{seed}", score=paper, loss=1.0)
    _, of_two, of_one = runner.tables(runner.load_study(*bench.files)).split("###")
    # Of all three differences together .02.
    assert cells(of_two, "paper")[4] == "+0.110 ± 0.014" and cells(of_one, "paper")[4] == "+0.140 ± 0.020"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"variants": ["lora", "papre"]}, "has no cell .'papre', 1."),
        ({"seeds": [7]}, "has no cell .'lora', 7."),
        ({"seeds": 7}, "holds no questions"),
        ({"titel": "x"}, "holds no questions"),
    ],
)
def test_a_wrong_question_is_told(runner: ModuleType, bench: Bench, change: dict[str, Any], problem: str) -> None:
    bench.questions[0] |= change
    bench.write()
    with pytest.raises(ConfigError, match=problem):
        runner.load_study(*bench.files)
    bench.sweep["grid"]["languages"] = ["pl", "es"]
    bench.questions[0] = bench.questions[1]
    bench.write()
    with pytest.raises(ConfigError, match="several cells"):
        runner.load_study(*bench.files)
