"""Free memory as the kernel sees it: control groups of both versions, at any depth, less what can be given back."""

import platform
from pathlib import Path

import psutil
import pytest
import torch

from flare_ds.runtime.engine import let_go
from flare_ds.runtime.free_memory import free_host_memory

GB = 10**9
HOST = 64 * GB


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()._replace(available=HOST)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone is it known what it keeps")
def test_what_a_training_freed_is_the_kernels_again() -> None:
    """A model that follows in the same process has the room of the one before; blocks of 64 kB are never unmapped."""
    process = psutil.Process()
    blocks = [torch.ones(1 << 14) for _ in range(4000)]
    held, kept = process.memory_info().rss, torch.ones(1 << 14)  # above all others, so the heap cannot shrink
    blocks.clear()
    let_go()
    assert held - process.memory_info().rss > 0.8 * 4000 * (1 << 16)
    assert kept.all()


def group(root: Path, path: str, files: dict[str, object]) -> None:
    directory = root / "sys/fs/cgroup" / path
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_text(f"{content}\n")


def process(root: Path, *lines: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))
    return root


def v2(limit: object, used: int, inactive: int) -> dict[str, object]:
    stat = f"anon 5\nfile {inactive + 7}\ninactive_file {inactive}\nactive_file 7"
    return {"memory.max": limit, "memory.current": used, "memory.stat": stat}


def v1(limit: int, used: int, inactive: int) -> dict[str, object]:
    stat = f"inactive_file 1\ntotal_inactive_file {inactive}"
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": stat}


def test_pages_of_files_that_were_read_are_free(tmp_path: Path) -> None:
    group(tmp_path, "", v2(8 * GB, 7 * GB, 6 * GB))
    assert free_host_memory(process(tmp_path, "0::/")) == 7 * GB


def test_the_tightest_limit_on_the_way_to_the_root_counts(tmp_path: Path) -> None:
    group(tmp_path, "slurm/job_7/step_0", v2("max", 1 * GB, 0))
    group(tmp_path, "slurm/job_7", v2(12 * GB, 5 * GB, 2 * GB))
    group(tmp_path, "slurm", v2(40 * GB, 20 * GB, 0))
    assert free_host_memory(process(tmp_path, "0::/slurm/job_7/step_0")) == 9 * GB


@pytest.mark.parametrize("seen", ["docker/ab12", ""])  # in a container the group's own directory is the root
def test_version_1_is_read_too(tmp_path: Path, seen: str) -> None:
    group(tmp_path, f"memory/{seen}", v1(10 * GB, 9 * GB, 4 * GB))
    lines = ["9:name=systemd:/x", "8:cpu,cpuacct:/docker/ab12", "4:memory:/docker/ab12", "0::/"]
    assert free_host_memory(process(tmp_path, *lines)) == 5 * GB


def test_without_a_limit_it_is_the_hosts(tmp_path: Path) -> None:
    assert free_host_memory(tmp_path) == HOST
    group(tmp_path, "memory", v1(2**63 - 4096, 9 * GB, 0))
    group(tmp_path, "", v2("max", 9 * GB, 0) | {"memory.stat": "not what it was"})
    assert free_host_memory(process(tmp_path, "4:memory:/", "0::/")) == HOST


def test_a_limit_that_is_passed_leaves_nothing(tmp_path: Path) -> None:
    group(tmp_path, "", v2(GB, 2 * GB, 0))
    assert free_host_memory(process(tmp_path, "0::/../x")) == 0
