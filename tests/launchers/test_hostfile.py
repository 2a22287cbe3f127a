"""hostfile.sh: what is wrong with a hostfile is named, and each slot is a rank; they meet in a real all_reduce."""

from pathlib import Path

import pytest

from flare_ds.processes import free_port
from tests.launchers.shell import LAUNCHERS, assert_one_message, run, tool_path, what_ranks_saw, write_program


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


def test_hostfile_of_this_machine_alone_needs_no_ssh(clone: Path, tmp_path: Path) -> None:
    (clone / "hosts").write_text("localhost slots=2\n", encoding="utf-8")
    tools = tool_path(tmp_path)
    write_program(tools / "deepspeed", '#!/bin/sh\necho "$@"\n')
    result = run(["bash", "launchers/hostfile.sh", "hosts", "train", "x.yaml"], cwd=clone, PATH=str(tools))
    options = "--no_ssh --node_rank 0 --master_addr 127.0.0.1"
    assert result.stdout == f"--hostfile hosts {options} --module flare_ds train x.yaml\n"
