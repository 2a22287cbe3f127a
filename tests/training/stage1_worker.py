"""One process that calls stage 1 again and again, in some of the calls with something that silently does nothing.

Run as `python -m tests.training.stage1_worker CONFIG IDLE_CONFIG`; told.json beside the run says what
each call was told.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.exceptions import CheckpointError, HostError, ToBeContinued
from flare_ds.runs import RunDirectory
from flare_ds.runtime.engine import RunningModel
from flare_ds.settings import load_config
from flare_ds.training import stage1

open_model, merge_run, train_together = stage1.open_model, stage1.merge_run, stage1.train_together


def merge_nothing(config: Config, output: Path) -> None:
    """A merge that writes the base as it was."""
    shutil.copytree(config.model.base, output)


def load_the_untuned(config: Config, **options: object) -> RunningModel:
    """A load that does not look where it is told to."""
    base = Path(config.run_dir).parent / "model"
    model = config.model.model_copy(update={"base": str(base)})
    return open_model(config.model_copy(update={"model": model}), **options)


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)


def merge_and_ask(config: Config, output: Path) -> None:
    merge_run(config, output)
    ask_to_stop()


def train_and_ask(runs: list[tuple[Config, Cache]], *, evaluate: bool) -> None:
    train_together(runs, evaluate=evaluate)
    ask_to_stop()


def merge_in_vain(config: Config, output: Path) -> None:
    raise AssertionError("it was asked to stop, and a large base takes long")


def refuse_base(config: Config) -> None:
    raise CheckpointError("no file holds it", fix="none")


def told(config: Config, output: Path) -> str:
    try:
        return str(stage1.run_stage1(config, output))
    except (CheckpointError, HostError, ToBeContinued) as error:
        return str(error)


def main(path: str, idle: str) -> None:
    config = load_config(path)
    root = Path(config.run_dir).parent
    found = {}
    for name, output in (("finished", "tuned"), ("again", "again"), ("taken", "model")):
        found[name] = told(config, root / output)
    code = "from pathlib import Path; from flare_ds.locks import hold\n"
    code += f"hold(Path({str(root / '.held.lock')!r}), doing=''); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        found["held"], found["holder"] = told(config, root / "held"), other.pid
        other.communicate(b"\n")
    shutil.move(root / "again", root / "moved")
    found["moved"] = told(config, root / "moved")
    before = signal.getsignal(signal.SIGTERM)
    for case, started, stand_ins in (
        ("merge", config, {"merge_run": merge_nothing}),
        ("load", config, {"open_model": load_the_untuned}),
        ("asked", config, {"merge_run": merge_and_ask}),
        ("lost", load_config(idle), {"check_mergeable": refuse_base}),
        ("last step", load_config(idle), {"train_together": train_and_ask, "merge_run": merge_in_vain}),
    ):
        with pytest.MonkeyPatch.context() as patch:
            for name, stand_in in stand_ins.items():
                patch.setattr(stage1, name, stand_in)
            found[case] = told(started, root / f"no-{case}")
        found[f"{case}: trained"] = RunDirectory(started.run_dir).trained
        signal.signal(signal.SIGTERM, before)  # a rank that leaves hears no more
    found["idle"] = told(load_config(idle), root / "no-idle")
    (root / "told.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
