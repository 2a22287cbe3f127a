"""What the pages take for granted: a clone in which the README was followed, with a toy model and toy data.

There are models/base, models/gemma3-270m, models/tuned, data/multiemo, pairs.jsonl and run.yaml; runs/pl-flare, which
is trained and scored, and runs/en-lora, a task adapter.
"""

import json
import os
from pathlib import Path

import yaml

from flare_ds.fetch.sources import DATA, MODELS
from tests.docs.commands import typed
from tests.toy import REPOSITORY, write_data, write_model

TASK = {"name": "multiemo", "data_dir": "data/multiemo", "validation_rows": 8, "test_rows": 12}
RUN = {
    "method": "flare",
    "run_dir": "runs/pl-flare",
    "model": {"base": "models/gemma3-270m"},
    "task": TASK | {"target_language": "pl"},
    "train": {"steps": 2, "batch_size": 4, "validate_every": 2},
}
ENGLISH = RUN | {"method": "lora", "run_dir": "runs/en-lora", "task": TASK | {"target_language": "en"}}


def make_world(root: Path) -> Path:
    """Make it below `root`; what is fetched lies in `root/home`."""
    home, clone = root / "home", root / "clone"
    for name in MODELS:
        write_model(home / "models" / name)
        (home / "models" / name / "fetched.json").write_text(json.dumps(MODELS.get(name).record()))
    for name in DATA:
        write_data(home / "data" / name, languages=("en", "pl", "es"), rows=200)
        (home / "data" / name / "fetched.json").write_text(json.dumps(DATA.get(name).record()))
    for name in ("base", "gemma3-270m", "tuned"):
        _link(clone / "models" / name, home / "models/gemma3-270m")
    _link(clone / "data/multiemo", home / "data/multiemo")
    _link(clone / "launchers", REPOSITORY / "launchers")
    (clone / "pairs.jsonl").write_text('{"id": "a", "source": "word1 great word2", "target": "word3 word4"}\n')
    for name, run in (("run.yaml", RUN), ("en.yaml", ENGLISH)):
        (clone / name).write_text(yaml.safe_dump(run))
    before = Path.cwd()
    os.chdir(clone)
    try:
        for command in ("train en.yaml", "train run.yaml", "evaluate runs/pl-flare"):
            typed(f"flare-ds {command}")
    finally:
        os.chdir(before)
    return clone


def _link(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
