"""`flare_ds.train`: a run is trained in this process, which is afterwards as it was."""

import json
import os
import shlex
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import flare_ds
from flare_ds.runs.directory import ADAPTER_WEIGHTS, BASE, CACHE, STATE, TRAIN_LOG, TRAINING, RunDirectory
from flare_ds.settings import load_config
from tests.toy import toy_settings, write_config
from tests.training.together_worker import broken_off


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("in_process")


def settings(root: Path, name: str) -> dict:
    return toy_settings(root, method="lora", name=name, steps=2, validate_every=2, whole_model=True)


def test_a_run_that_is_trained_stays_so_without_its_state(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As `flare-ds push` leaves it; to train it again would write over its adapter."""
    run = flare_ds.train(settings(root, "trained"))
    shutil.rmtree(run / "state")
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capfd.readouterr()
    assert flare_ds.train(run) == run
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
    assert f"{run} is trained; to train it anew, delete it" in capfd.readouterr().err


def test_a_damaged_file_of_a_run_is_mended_as_is_said(root: Path) -> None:
    """No command writes what is there already, so that `train` alone would read it and fail again."""
    path = flare_ds.train(settings(root, "it's damaged"))
    run, named = RunDirectory(path), shlex.quote(str(path))
    whole = {name: run.read(name).keys() for name in (CACHE, TRAINING)}
    adapter, log = ((path / file).read_bytes() for file in (ADAPTER_WEIGHTS, TRAIN_LOG))
    fixes = {
        TRAINING: f"restore it from a copy, or delete it, then flare-ds train {named}",
        CACHE: f"restore it from a copy, or delete it and training.json, then flare-ds train {named}",
        BASE: "delete it; the run goes on with the base that its config.yaml names",
    }
    for name, fix in fixes.items():
        (path / name).write_text("{")
        with pytest.raises(flare_ds.DataError, match=f"cannot read .*{name}") as refused:
            run.read(name)
        assert refused.value.fix == fix
        for deleted in {CACHE: (CACHE, TRAINING)}.get(name, (name,)):
            (path / deleted).unlink()
        flare_ds.train(path)
        assert (path / ADAPTER_WEIGHTS).read_bytes() == adapter
        assert {name: run.read(name).keys() for name in whole} == whole
    (path / TRAIN_LOG).write_bytes(log + b"?\n" + log)
    with pytest.raises(flare_ds.DataError) as refused:
        run.train_log()
    assert refused.value.fix == "remove the damaged lines"


def test_a_run_that_has_begun_goes_on_with_its_layers_computed_again(root: Path) -> None:
    """As is advised where a GPU is full; and then as before."""
    made = [toy_settings(root, name=name, steps=6, validate_every=3, whole_model=True) for name in ("once", "again")]
    for one in made:
        one["adapter"] = {"dropout": 0.2}
    straight, broken = (load_config(write_config(one)) for one in made)
    broken_off([broken], 3)
    made[1]["train"]["gradient_checkpointing"] = True
    once, again = (flare_ds.train(one) for one in (straight, made[1]))
    for file in (ADAPTER_WEIGHTS, STATE):
        torch.testing.assert_close(load_file(again / file), load_file(once / file), atol=1e-6, rtol=1e-6)
    assert load_config(again).train.gradient_checkpointing
    made[1]["train"]["gradient_checkpointing"] = False
    assert flare_ds.train(made[1]) == again


def test_a_run_that_other_code_began_goes_on_and_says_so(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = settings(root, "other code")
    made["train"] |= {"steps": 4, "validate_every": 4}
    config = load_config(write_config(made))
    broken_off([config], 3)
    begun = Path(config.run_dir) / "versions.json"
    begun.write_text(json.dumps(json.loads(begun.read_text()) | {"code": "other"}))
    assert RunDirectory(flare_ds.train(made)).trained
    assert capfd.readouterr().err.count("was begun by other code of flare_ds (other, this is") == 1


def test_what_trains_nothing_is_sent_to_where_it_is_asked(root: Path) -> None:
    made = toy_settings(root, method="zero_shot", name="nothing", whole_model=True)
    with pytest.raises(
        flare_ds.ConfigError, match=r"trains nothing\n  fix: .*`evaluate` \(in Python: flare_ds\.load\)"
    ):
        flare_ds.train(made)


def test_a_task_in_python_that_a_run_brings_is_run_only_where_it_is_trusted(root: Path, tmp_path: Path) -> None:
    made = settings(root, "trusted")
    code = "from flare_ds.tasks.base import TASKS\nTASK = TASKS.get('multiemo')\n"
    (tmp_path / "own.py").write_text(code)
    made["task"] |= {"path": str(tmp_path / "own.py")}
    run = flare_ds.train(made)
    with pytest.raises(flare_ds.ConfigError, match=r"add --trust-task-code \(in Python: trust_task_code=True\)"):
        flare_ds.train(run)
    assert flare_ds.train(run, trust_task_code=True) == run


def test_signals_do_what_they_did_when_a_training_was_asked_to_stop(root: Path) -> None:
    """A process on the command line ends then; this one goes on."""
    made = settings(root, "stopped")
    log, asked = Path(made["run_dir"]) / "train_log.jsonl", (signal.SIGTERM, signal.SIGUSR1)

    def ask() -> None:
        while not log.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = [signal.getsignal(number) for number in asked]
    threading.Thread(target=ask, daemon=True).start()
    made["train"]["steps"] = 2000
    with pytest.raises(flare_ds.ToBeContinued, match="run the same command again to continue"):
        flare_ds.train(made)
    assert [signal.getsignal(number) for number in asked] == before
