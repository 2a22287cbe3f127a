"""Starting a launcher in a small environment of its own; its one message; a clone in which flare_ds is a probe."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

LAUNCHERS = ROOT / "launchers"

TOOLS = ["bash", "awk", "dirname", "realpath", "getconf", "nproc", "grep", "cat", "mkdir", "df", "flock", "sha256sum"]

TOOLS += ["find", "mv", "tee", "tail", "env", "uname", "sed", "mktemp", "rm", "hostname", "sleep"]

# Joins the ranks that the launcher's environment describes, and writes what this rank saw.
PROBE = """
import os, sys
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor([10.0 ** dist.get_rank()])
dist.all_reduce(total)
arguments = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
with open(f"{os.environ['PROBE_OUT']}/{dist.get_rank()}", "w") as file:
    print(dist.get_world_size(), int(total), os.environ["LOCAL_RANK"], *arguments, file=file)
dist.destroy_process_group()
"""


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def small_environment(**own: str) -> dict[str, str]:
    """Nothing of the caller's but the PATH and HOME, and what DeepSpeed has compiled."""
    inherited = {name: os.environ[name] for name in ("HOME", "TORCH_EXTENSIONS_DIR") if name in os.environ}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "PYTHON": sys.executable, "DS_ACCELERATOR": "cpu", **inherited, **own}


def run(command: list[str | Path], cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a launcher in a small environment of its own, and wait for its end."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=small_environment(**environment),
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def tool_path(tmp_path: Path) -> Path:
    """A PATH directory with the basic tools and nothing else: no compiler, no Python, no DeepSpeed."""
    directory = tmp_path / "tools"
    directory.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None, tool
        (directory / tool).symlink_to(found)
    return directory


def assert_one_message(result: subprocess.CompletedProcess[str], problem: str, fix: str) -> None:
    """The launcher failed, and its last two lines, and only those, say what is wrong and what to do."""
    assert result.returncode == 1, result.stderr
    *before, last, advice = result.stderr.rstrip().splitlines()
    assert last.startswith("error: ") and problem in last
    assert advice.startswith("  fix: ") and fix in advice
    assert not [line for line in before if not line.startswith("==")], before


def what_ranks_saw(clone: Path) -> list[str]:
    return [file.read_text().strip() for file in sorted((clone / "seen").iterdir())]


def environment_with_pip(tmp_path: Path, pip: str, *, before: str = "", python: str = "") -> Path:
    """A finished-looking virtual environment, whose Python is a shell script.

    Args:
        tmp_path: where it is made.
        pip: what `python -m pip install` does, as shell text.
        before: what the shell does first.
        python: what Python does first, where a program is given.
    """
    venv = tmp_path / "venv"
    script = f"""#!/usr/bin/env bash
{before}
[[ "$*" == "-m pip --version" ]] && exit
[[ "$1" == -c ]] && exec {sys.executable} -c "import sys, sysconfig; sys.executable = '{venv}/bin/python'; {python} $2"
echo "$*" >>{venv}/calls
{pip}
"""
    write_program(venv / "bin/python", script)
    return venv
