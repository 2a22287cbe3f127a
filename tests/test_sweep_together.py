"""A real sweep: its cache, all its cells trained and scored in one job, the report; and then nothing left to do.

And one that is killed on its way: it ends in the same report.
"""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from flare_ds.runs import RunDirectory
from tests.distributed import shared_environment
from tests.toy import toy_settings, write_data, write_model

TIMED = ("step time", "tokens/s")
"""Columns of the report that no two sweeps have alike."""


def swept(path: Path) -> str:
    command = [sys.executable, "-m", "flare_ds", "sweep", str(path)]
    done = subprocess.run(command, env=shared_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_sweep_whose_cells_train_together(tmp_path: Path) -> None:
    base = toy_settings(tmp_path, steps=4, validate_every=4, whole_model="auto", data_seed=1)
    del base["method"], base["run_dir"], base["task"]["target_language"]
    grid = {"languages": ["pl"], "methods": ["lora", "flare"], "seeds": [1, 2]}
    path, out = tmp_path / "sweep.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump({"out": str(out), "ranks": 1, "base": base, "grid": grid, "together": "auto"}))
    said = swept(path)
    assert said.count("stage pl/lora-seed1 and 3 more done") == 1
    assert all(RunDirectory(out / f"pl/{cell}").finished for cell in ("lora-seed1", "lora-seed2", "flare-seed1"))
    assert "4 runs are trained together over one base" in (out / "pl/lora-seed1/log.txt").read_text()
    assert "| flare " in (out / "report.md").read_text()
    assert "stage pl/lora-seed1 and 3 more skipped (finished)" in swept(path)


def steps(run: Path) -> int:
    log = run / "train_log.jsonl"
    return log.read_text().count('"loss"') if log.exists() else 0


def untimed(report: str) -> list[list[str]]:
    """The lines of a report, cell by cell, without what was measured with a clock."""
    lines, dropped = [], list[int]()
    for line in report.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if "method" in cells:
            dropped = [number for number, cell in enumerate(cells) if cell in TIMED]
        rule = set(line) <= set("|- ")  # as wide as the widest cell
        lines.append([] if rule else [cell for number, cell in enumerate(cells) if number not in dropped])
    return lines


def test_a_real_sweep_killed_five_times_ends_in_the_same_report(tmp_path: Path) -> None:
    """Two languages, three methods, two seeds; kill -9 while it prepares, tunes, trains, and scores."""
    write_model(tmp_path / "model")
    write_data(tmp_path / "data", languages=("en", "pl", "de"))
    base = toy_settings(tmp_path, steps=8, validate_every=4, whole_model="auto")
    del base["method"], base["run_dir"], base["task"]["target_language"]
    grid = {"languages": ["pl", "de"], "methods": ["lora", "flare", "input_fusion"], "seeds": [1, 2]}
    stage1 = {"train": {"steps": 8, "validate_every": 4}}
    path, out, cache = tmp_path / "sweep.yaml", tmp_path / "out", tmp_path / "cache"
    settings = {"out": str(out), "ranks": 1, "base": base, "stage1": stage1, "grid": grid, "together": "auto"}
    path.write_text(yaml.safe_dump(settings))
    swept(path)
    undisturbed = (out / "report.md").read_text()
    shutil.rmtree(out)
    shutil.rmtree(cache)
    moments: list[Callable[[], bool]] = [
        lambda: any(cache.glob("*/manifest.json")),
        lambda: steps(out / "stage1") >= 3,
        lambda: steps(out / "pl/lora-seed1") >= 3,
        lambda: steps(out / "de/flare-seed2") >= 6,
        lambda: any(out.glob("*/*/metrics.json")),
    ]
    for moment in moments:
        command = [sys.executable, "-m", "flare_ds", "sweep", str(path)]
        with (tmp_path / "said.txt").open("w") as said:
            process = subprocess.Popen(command, env=shared_environment(), stdout=said, stderr=said)
        while process.poll() is None and not moment():
            time.sleep(0.02)
        assert process.poll() is None, f"it ended before that:\n{(tmp_path / 'said.txt').read_text()}"
        process.send_signal(signal.SIGKILL)
        process.wait()
    swept(path)
    assert untimed((out / "report.md").read_text()) == untimed(undisturbed)
    assert undisturbed.count("| flare ") >= 4, "a line in the tables of scores and of differences, a language"
