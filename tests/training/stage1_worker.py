"""One process that calls stage 1 again and again, in some of the calls with something that silently does nothing.

Run as `python -m tests.training.stage1_worker CONFIG IDLE_CONFIG`; told.json beside the run says what
each call was told.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest

from flare_ds.config import Config
from flare_ds.exceptions import CheckpointError
from flare_ds.runtime.engine import RunningModel
from flare_ds.settings import load_config
from flare_ds.training import stage1

open_model = stage1.open_model


def merge_nothing(config: Config, output: Path) -> None:
    """A merge that writes the base as it was."""
    shutil.copytree(config.model.base, output)


def load_the_untuned(config: Config, **options: object) -> RunningModel:
    """A load that does not look where it is told to."""
    base = Path(config.run_dir).parent / "model"
    model = config.model.model_copy(update={"base": str(base)})
    return open_model(config.model_copy(update={"model": model}), **options)


def told(config: Config, output: Path) -> str:
    try:
        return str(stage1.run_stage1(config, output))
    except CheckpointError as error:
        return str(error)


def main(path: str, idle: str) -> None:
    config = load_config(path)
    root = Path(config.run_dir).parent
    found = {}
    for name, output in (("finished", "tuned"), ("again", "again"), ("taken", "model")):
        found[name] = told(config, root / output)
    shutil.move(root / "again", root / "moved")
    found["moved"] = told(config, root / "moved")
    for fault, *stand_in in (("merge", "merge_run", merge_nothing), ("load", "open_model", load_the_untuned)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage1, *stand_in)
            found[fault] = told(config, root / f"no-{fault}")
    found["idle"] = told(load_config(idle), root / "no-idle")
    (root / "told.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
