"""Every command of the README runs, as it stands there, in a small workspace: a toy model, toy data, real ranks.

Where the README's command would train the real model, the same command gets more of its documented options.
"""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from flare_ds.processes import free_port
from tests.toy import REPOSITORY, toy_settings, write_data

COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    for line in block.strip().splitlines()
]

SBATCH = """#!/usr/bin/env bash
[[ " $* " == *" --nodes=2 --gpus-per-node=8 "* ]] || exit 90
while [[ "$1" == -* ]]; do shift; done
export SLURM_JOB_NODELIST='one,two' SLURM_JOB_ID=7 SLURM_JOB_NUM_NODES=2 SLURM_SUBMIT_DIR=$PWD
exec bash "$@"
"""
SCONTROL = """#!/usr/bin/env bash
printf '127.0.0.1\\nlocalhost\\n'
"""
SRUN = """#!/usr/bin/env bash
[[ " $* " == *" --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task="*" --kill-on-bad-exit=1 "* ]] || exit 91
while [[ "$1" == --* ]]; do shift; done
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
wait $first && wait $second
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that looks like the clone, with run.yaml, hosts, data and stand-ins for SLURM's programs."""
    root = tmp_path_factory.mktemp("clone")
    shutil.copytree(REPOSITORY / "launchers", root / "launchers")
    shutil.copytree(REPOSITORY / "ds_configs", root / "ds_configs")
    (root / "flare_ds").symlink_to(REPOSITORY / "flare_ds")
    (root / "hosts").write_text("localhost slots=2\n")
    (root / "pairs.jsonl").write_text('{"id": "a", "source": "word1 great word2", "target": "word3 word4"}\n')
    settings = toy_settings(root, steps=2, validate_every=2)
    write_data(root / "data", languages=("en", "pl", "es"), rows=300)
    for name, target, method in (("pl-flare", "pl", "flare"), ("en-lora", "en", "lora")):
        task = settings["task"] | {"target_language": target}
        run = settings | {"run_dir": f"runs/{name}", "method": method, "task": task}
        (root / ("run.yaml" if name == "pl-flare" else "en.yaml")).write_text(yaml.safe_dump(run))
    for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("srun", SRUN)):
        program = root / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    shell(root, "python -m flare_ds train en.yaml")
    return root


def environment(root: Path) -> dict[str, str]:
    path = f"{root / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": path,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(root),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }


def shell(root: Path, command: str) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=root, env=environment(root), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def extended(command: str, root: Path) -> str:
    """The README's command with the options that make it small enough for a test."""
    small = "base.train.steps=1 base.task.test_rows=20 base.task.validation_rows=20 base.task.train_rows=40"
    if "quickstart.sh" in command:
        small += " 'grid.methods=[zero_shot]' stage1=null"
        return f"{command} --no-install --model {root}/model --data {root}/data --out {root}/quick {small}"
    if "sweep_languages.sh" in command:
        small += " 'grid.methods=[zero_shot, lora]' 'grid.languages=[es]' 'grid.seeds=[1]' stage1=null"
        return f"{command} base.model.base={root}/model base.task.data_dir={root}/data out=runs/languages {small}"
    if " stage1 " in command:  # in two steps nothing would be learned, and the base would not be kept
        command += " train.steps=40 train.learning_rate=0.01 train.validate_every=20"
    if command.startswith("deepspeed "):  # a port of its own, so that nothing else on this machine is in the way
        return command.replace("deepspeed ", f"deepspeed --master_port {free_port()} ")
    if command == "./launchers/test.sh":
        return f"{command} --help"  # this very test is what the command runs
    return command


def serves(root: Path, command: str) -> None:
    """Start TensorBoard and read a page from it."""
    port = free_port()
    server = subprocess.Popen(
        ["bash", "-c", f"exec {command} --port {port}"], cwd=root, env=environment(root), stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                tags = urllib.request.urlopen(f"http://localhost:{port}/data/plugin/scalars/tags", timeout=5).read()
                if b"train/loss" in tags:
                    return
            except OSError:
                pass
            assert server.poll() is None and time.monotonic() < deadline, "TensorBoard shows no loss"
            time.sleep(0.5)
    finally:
        server.terminate()
        server.wait()


def test_the_readme_has_its_commands() -> None:
    verbs = ("quickstart.sh", "test.sh", "prepare", "train", "evaluate", "predict", "stage1", "merge", "report")
    for word in (*verbs, "tensorboard", "hostfile.sh", "sbatch", "sweep_languages.sh"):
        assert any(word in command for command in COMMANDS), word


@pytest.mark.parametrize("command", COMMANDS)
def test_a_readme_command_runs(workspace: Path, command: str) -> None:
    """In the README's order: later commands read what earlier ones wrote."""
    if command.startswith("tensorboard"):
        serves(workspace, command)
    else:
        shell(workspace, extended(command, workspace))
