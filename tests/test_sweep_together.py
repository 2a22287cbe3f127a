"""A real sweep: its cache, all its cells trained and scored in one job, the report; and then nothing left to do."""

import subprocess
import sys
from pathlib import Path

import yaml

from flare_ds.runs import RunDirectory
from tests.distributed import shared_environment
from tests.toy import toy_settings


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
