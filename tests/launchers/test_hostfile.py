"""hostfile.sh: what is wrong with a hostfile is named, and each slot is a rank; they meet in a real all_reduce."""

import os
import re
from pathlib import Path

import pytest

from flare_ds.processes import free_port
from tests.launchers.shell import LAUNCHERS, ROOT, assert_one_message, run, tool_path, what_ranks_saw, write_program

KINDS = "FLARE_DS|DEEPSPEED|DS|HF|OMP|GLOO|NCCL|CUDA|PYTORCH|TORCH|TOKENIZERS|WANDB|MLFLOW"
"""What the names of variables begin with that decide something on a rank."""
NOT_TOLD = {
    "CUDA_VISIBLE_DEVICES": "DeepSpeed sets it, by the slots",
    "FLARE_DS_VENV": "told as the PATH of its Python",
    "HF_TOKEN": "a secret, which others would see in a list of processes",
    "MLFLOW_TRACKING_URI": "DeepSpeed hands on MLFLOW_*",
    "NCCL_SOCKET_IFNAME": "DeepSpeed hands on NCCL_*",
    "TOKENIZERS_PARALLELISM": "set by us",
    "TORCH_CPP_LOG_LEVEL": "set by us",
    "WANDB_API_KEY": "a secret",
    "MLFLOW_TRACKING_TOKEN": "a secret, which DeepSpeed would tell if it were set",
}


def test_the_other_hosts_are_told_every_variable_that_we_read_or_name(clone: Path, tmp_path: Path) -> None:
    texts = [path.read_text() for kind in ("flare_ds/**/*.py", "docs/*.md") for path in ROOT.glob(kind)]
    named = {name for text in texts for name in re.findall(rf"\b(?:{KINDS})_[A-Z_]+\b", text)} - set(NOT_TOLD)
    (clone / "hosts").write_text("elsewhere slots=2\n", encoding="utf-8")
    tools = tool_path(tmp_path)
    write_program(tools / "deepspeed", '#!/bin/sh\ncat "$DS_ENV_FILE"\necho "set: $MLFLOW_TRACKING_TOKEN" >&2\n')
    write_program(tools / "pdsh", "#!/bin/sh\n")
    values = dict.fromkeys(named, "7") | {"HOME": str(tmp_path), "PATH": str(tools), "MLFLOW_TRACKING_TOKEN": "secret"}
    result = run(["bash", "launchers/hostfile.sh", "hosts", "train", "x.yaml"], cwd=clone, **values)
    assert result.returncode == 0 and "set: \n" in result.stderr, result.stderr
    assert {line.partition("=")[0] for line in result.stdout.splitlines()} - {"PATH"} == named
    pages = (ROOT / "docs/cluster.md").read_text(), (LAUNCHERS / "hostfile.sh").read_text().partition("set -euo")[0]
    assert all(name in page for name in named for page in pages)


@pytest.mark.parametrize(
    ("text", "problem", "fix"),
    [
        (None, "no such file", "node1 slots=8"),
        ("", "names no host", "node1 slots=8"),
        ("# none\nnode1 slots=2\nnode2 2\n", "line 3: node2 2", "node1 slots=8"),
        ("node1 slots=0\n", "line 1: node1 slots=0", "node1 slots=8"),
        ("node1 slots=2 # a\n\nnode2 slots=2", "pdsh is not installed", "install pdsh"),
    ],
)
def test_a_bad_hostfile_is_named(text: str | None, problem: str, fix: str, clone: Path, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "hosts").write_text(text, encoding="utf-8")
    tools = tool_path(tmp_path)
    write_program(tools / "deepspeed", "#!/bin/sh\necho must not be reached\n")
    result = run(["bash", clone / "launchers/hostfile.sh", tmp_path / "hosts", "train", "x.yaml"], PATH=str(tools))
    assert_one_message(result, problem, fix)
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [["hosts"], ["hosts", "--no_ssh", "--"], ["hosts", "--no_ssh"]])
def test_hostfile_wants_a_verb(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("localhost slots=2\n", encoding="utf-8")
    result = run(["bash", LAUNCHERS / "hostfile.sh", *arguments], cwd=tmp_path)
    assert_one_message(result, "", "--help")


def test_hostfile_starts_a_rank_for_each_slot(clone: Path) -> None:
    (clone / "hosts").write_text("# this machine\nlocalhost slots=2\n", encoding="utf-8")
    options = ["--no_ssh", "--node_rank", "0", "--master_addr", "127.0.0.1", "--master_port", free_port(), "--"]
    command = ["launchers/hostfile.sh", "hosts", *options, "train", "run.yaml", "a=b c"]
    result = run(command, cwd=clone, PROBE_OUT=str(clone / "seen"))
    assert result.returncode == 0, result.stderr
    assert what_ranks_saw(clone) == ["2 11 0 train run.yaml a=b c", "2 11 1 train run.yaml a=b c"]


@pytest.mark.parametrize("name", ["two words", "r&d", "a(1)"])
def test_a_path_that_other_hosts_would_be_told_unquoted_is_refused(name: str, clone: Path, tmp_path: Path) -> None:
    moved = clone.rename(tmp_path / name)
    (moved / "hosts").write_text("elsewhere slots=2\n", encoding="utf-8")
    tools = tool_path(tmp_path)
    for program in ("deepspeed", "pdsh"):
        write_program(tools / program, "#!/bin/sh\necho must not be reached\n")
    result = run(["bash", "launchers/hostfile.sh", "hosts", "train", "x.yaml"], cwd=moved, PATH=str(tools))
    assert_one_message(result, f"{moved} has a character", "--no_ssh")
    assert result.stdout == ""


HERE = "--no_ssh --node_rank 0 --master_addr 127.0.0.1"


@pytest.mark.parametrize(
    ("host", "port", "options", "given"),
    [
        ("localhost", "", [], HERE),
        (os.uname().nodename, "", ["--num_gpus", "1", "--"], f"{HERE} --num_gpus 1"),
        ("127.0.0.1", "29501", ["--master_port", "29502", "--"], f"{HERE} --master_port 29501 --master_port 29502"),
        ("localhost", "29501", ["--no_ssh", "--"], "--master_port 29501 --no_ssh"),
        ("elsewhere", "29501", ["--include", "x", "--"], "--master_port 29501 --include x --force_multi"),
    ],
)
def test_hostfile_of_this_machine_alone_needs_no_ssh(
    host: str, port: str, options: list[str], given: str, clone: Path, tmp_path: Path
) -> None:
    """By whatever name; and MASTER_PORT is that of all launchers."""
    (clone / "hosts").write_text(f"{host} slots=2\n", encoding="utf-8")
    tools = tool_path(tmp_path)
    for program in ("deepspeed", "pdsh"):
        write_program(tools / program, '#!/bin/sh\necho "$@"\n')
    command = ["bash", "launchers/hostfile.sh", "hosts", *options, "train", "x.yaml"]
    result = run(command, cwd=clone, PATH=str(tools), MASTER_PORT=port)
    assert result.stdout == f"--hostfile hosts {given} --module flare_ds train x.yaml\n", result.stderr
