"""The README is typed: every command as it is printed, in its order, in one terminal, in a copy of the clone.

The terminal knows nothing but a python3: what the README does not install, fetch, make or activate is not there.
Three things stand in for the world outside. The packages of constraints.txt are those of this very environment, so pip
finds them installed. The directory of what was fetched holds a toy model and toy data. Slurm's programs are scripts.
Commands that would take minutes get options that make them smaller (`SIZES`), and nothing else.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.cpp_extension import get_default_build_root

from flare_ds.fetch.sources import DATA, MODELS
from flare_ds.processes import free_port
from tests.docs.blocks import blocks
from tests.toy import REPOSITORY, write_data, write_model

TYPED = [
    (block, line)
    for block in blocks(REPOSITORY / "README.md")
    for line in (block.commands if block.language == "bash" else [block.text])
    if block.language in ("bash", "python")
]
TRAINING = "base.train.steps=1 base.task.test_rows=20 base.task.validation_rows=20 base.task.train_rows=40"
SIZES = {
    "./launchers/quickstart.sh": f"{TRAINING} 'grid.methods=[zero_shot]' stage1=null",
    "./launchers/test.sh": "--help",  # this very test is what the command runs
    "flare-ds stage1": "train.steps=40 train.validate_every=20 train.learning_rate=0.01",
    "flare-ds train": "train.steps=2 train.validate_every=2",
    "flare-ds sweep": f"{TRAINING} 'grid.methods=[zero_shot, lora]'",
    "./launchers/hostfile.sh": "train.steps=2 train.validate_every=2",
    "sbatch": "train.steps=2 train.validate_every=2",
}

SBATCH = """#!/usr/bin/env bash
[[ " $* " == *" --nodes=2 --gpus-per-node=8 --exclusive "* ]] || exit 90
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
PYTHON = f"""#!/bin/sh
exec {sys._base_executable} "$@"
"""


class Terminal:
    """Commands in one directory, one after the other; what one exports the next one has."""

    def __init__(self, clone: Path, environment: dict[str, str]) -> None:
        self.clone = clone
        self._exported = clone.parent / "exported.sh"
        self._environment = environment
        self._exported.touch()

    def start(self, command: str, **streams: int) -> subprocess.Popen:
        """Type a command."""
        text = f"source {self._exported}; {command}\nstatus=$?; export -p >{self._exported}; exit $status"
        return subprocess.Popen(["bash", "-c", text], cwd=self.clone, env=self._environment, text=True, **streams)

    def run(self, command: str) -> str:
        """Type a command, and wait until it has ended well; what it prints."""
        process = self.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, f"{command}\n{out[-2000:]}\n{err[-3000:]}"
        return out


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A terminal in a fresh clone, on a host that has nothing else of ours; afterwards git sees nothing new in it."""
    root = tmp_path_factory.mktemp("machine")
    clone = root / "clone"
    _copy_the_clone(clone)
    _put_packages(clone / ".venv")
    _put_fetched(root / "home/.cache/flare_ds")
    (clone / "hosts").write_text("localhost slots=2\n")
    _put_programs(root / "bin", python3=PYTHON, sbatch=SBATCH, scontrol=SCONTROL, srun=SRUN)
    kept = {name: value for name, value in os.environ.items() if name in ("LANG", "LC_ALL", "TMPDIR", "CXX")}
    environment = {
        **kept,
        "HOME": str(root / "home"),
        "PATH": f"{root / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": _extensions(),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads the value as that of --build-isolation
    }
    yield Terminal(clone, environment)
    assert _git(clone, "status", "--porcelain") == ""


def _copy_the_clone(clone: Path) -> None:
    for name in _git(REPOSITORY, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (REPOSITORY / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, clone / name)
    _git(clone, "init", "--quiet")
    _git(clone, "add", "--all")
    _git(clone, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "--quiet", "--message", "copy")


def _git(directory: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=directory, check=True, capture_output=True, text=True).stdout


def _put_packages(venv: Path) -> None:
    """What pip would have brought into the environment that the README makes: the packages, and their programs."""
    packages = Path(sysconfig.get_path("purelib"))
    site = venv / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    site.mkdir(parents=True)
    made = f"os.path.exists({str(venv / 'bin/pip')!r})"  # else there would be a pip, and it would get none of its own
    (site / "brought.pth").write_text(f"import os, sys; {made} and sys.path.insert(0, {str(packages)!r})\n")
    (venv / "bin").mkdir()
    for name in ("deepspeed", "tensorboard"):
        _, _, body = (Path(sysconfig.get_path("scripts")) / name).read_text().partition("\n")
        (venv / "bin" / name).write_text(f"#!{venv}/bin/python\n{body}")
        (venv / "bin" / name).chmod(0o755)
    if ninja := shutil.which("ninja"):
        (venv / "bin/ninja").symlink_to(ninja)
    (venv / "torch_extensions").symlink_to(_extensions())


def _extensions() -> str:
    """Where DeepSpeed's CPU communication is compiled already."""
    return os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()


def _put_fetched(home: Path) -> None:
    """What `flare-ds fetch` would have made: a toy model, and toy data."""
    model, data = home / "models/gemma3-270m", home / "data/multiemo"
    write_model(model)
    write_data(data, languages=("en", "pl"), rows=300)
    for directory, source in ((model, MODELS.get(model.name)), (data, DATA.get(data.name))):
        (directory / "fetched.json").write_text(json.dumps(source.record()))


def _put_programs(directory: Path, **programs: str) -> None:
    directory.mkdir()
    for name, text in programs.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)


def sized(command: str) -> str:
    """The command with the options that make it small."""
    size = next((size for start, size in SIZES.items() if command.startswith(start)), "")
    return f"{command} {size}"


def serves(terminal: Terminal, command: str) -> None:
    """Start TensorBoard and read a page from it."""
    port = free_port()
    server = terminal.start(f"exec {command} --port {port}", stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                tags = urllib.request.urlopen(f"http://localhost:{port}/data/plugin/scalars/tags", timeout=5).read()
                if b"loss/train" in tags:
                    return
            except OSError:
                pass
            assert server.poll() is None and time.monotonic() < deadline, "TensorBoard shows no loss"
            time.sleep(0.5)
    finally:
        server.terminate()
        server.wait()


def test_the_readme_has_its_commands() -> None:
    typed = "\n".join(line for _, line in TYPED)
    for word in ("activate", "quickstart.sh", "test.sh", "prepare", "stage1", "train", "evaluate", "report", "sweep"):
        assert word in typed
    for word in ("predict", "merge", "tensorboard", "hostfile.sh", "sbatch", "flare_ds.load"):
        assert word in typed


def test_lines_are_short() -> None:
    for line in (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines():
        assert len(line) < 120, line


@pytest.mark.parametrize(("block", "line"), [pytest.param(*typed, id=typed[1][:60]) for typed in TYPED])
def test_what_the_readme_prints_runs(terminal: Terminal, block, line: str) -> None:
    """In the README's order: later commands read what earlier ones wrote."""
    if block.language == "python":
        (terminal.clone.parent / "typed.py").write_text(line, encoding="utf-8")
        terminal.run(f"python {terminal.clone.parent / 'typed.py'}")
    elif line.startswith("tensorboard"):
        serves(terminal, line)
    else:
        terminal.run(sized(line))
