"""A wheel, installed into a fresh environment, works from a project of the user's own, with no clone in sight.

The environment sees the libraries that are installed here, and not this package.
"""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from tests.distributed import REPOSITORY
from tests.toy import FILLER, word_tokenizer, write_model

PIP = [sys.executable, "-m", "pip"]
OFFLINE = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
MOODS = {"good": "lovely", "bad": "dreadful"}
TASK = {
    "name": "moods",
    "languages": ["en", "pl"],
    "pools": ["train", "validation", "test"],
    "fields": ["text"],
    "labels": list(MOODS),
    "template": "Text: {text}\nMood:",
}
RUN = {
    "method": "flare",
    "run_dir": "runs/pl",
    "model": {"base": "model", "dtype": "float32"},
    "task": {"name": "moods", "path": "moods.yaml", "data_dir": "data", "target_language": "pl"},
    "train": {"steps": 2, "batch_size": 4, "validate_every": 2},
}


def run(words: list[str], directory: Path, *, path: str = "") -> str:
    """What a command prints that knows nothing of the clone; `path` comes first among where programs are."""
    kept = {name: value for name, value in os.environ.items() if name in ("HOME", "TORCH_EXTENSIONS_DIR", "TMPDIR")}
    places = os.pathsep.join([path, str(Path(sys.executable).parent), os.environ["PATH"]]).removeprefix(os.pathsep)
    environment = {**kept, "PATH": places, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs of the fresh environment are."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"  # so that a build leaves nothing in the clone
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("flare_ds", "ds_configs"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run([*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", str(root), str(source)], root)
    (wheel,) = root.glob("*.whl")
    shutil.rmtree(source)
    run([sys.executable, "-m", "venv", "--without-pip", str(root / "venv")], root)
    python = root / "venv/bin/python"
    run([*PIP, "--python", str(python), "install", *OFFLINE, "--no-compile", str(wheel)], root)
    (site,) = root.glob("venv/lib/python3*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")  # now, or pip would see the clone's
    return python.parent


def write_project(root: Path) -> None:
    words = ["Text", ":", "Mood", *MOODS, *MOODS.values(), *FILLER]
    write_model(root / "model", tokenizer=word_tokenizer(words))
    draw = random.Random(0)
    for split, rows in {"train": 24, "validation": 6, "test": 6}.items():
        labels = [draw.choice(list(MOODS)) for _ in range(rows)]
        for language in TASK["languages"]:
            path = root / "data" / language / f"{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                texts = [
                    f"{split}{n} {' '.join(draw.choices(FILLER, k=4))} {MOODS[label]}" for n, label in enumerate(labels)
                ]
                csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    (root / "moods.yaml").write_text(yaml.safe_dump(TASK))
    (root / "run.yaml").write_text(yaml.safe_dump(RUN))


def test_a_project_of_ones_own(programs: Path, tmp_path: Path) -> None:
    write_project(tmp_path)
    about = "import flare_ds; print(flare_ds.__file__, flare_ds.__version__)"
    file, version = run([str(programs / "python"), "-c", about], tmp_path, path=str(programs)).split()
    assert Path(file).is_relative_to(programs.parent)
    assert f'"{version}"' in (REPOSITORY / "flare_ds/__init__.py").read_text()
    for verb, config in (("prepare", "run.yaml"), ("train", "run.yaml"), ("evaluate", "runs/pl")):
        told = run([str(programs / "flare-ds"), verb, config], tmp_path, path=str(programs))
    assert (
        "runs/pl: accuracy" in told and json.loads((tmp_path / "runs/pl/metrics.json").read_text())["num_examples"] == 6
    )
    assert yaml.safe_load((tmp_path / "runs/pl/config.yaml").read_text())["deepspeed"] == "zero3_fp32_cpu"
