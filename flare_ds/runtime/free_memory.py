"""What the kernel would still give this process: the host's free memory, or less where a control group limits it.

    /proc/self/cgroup      0::/slurm/job_7/step_0     (version 2)      4:memory:/docker/ab12     (version 1)
    limits of              /slurm/job_7/step_0, /slurm/job_7, /slurm, and the root: containers and batch systems set
                           theirs anywhere on the way

Pages of files that were read count as used, but the kernel takes them back before it kills anything.
"""

import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import psutil

_V1_UNLIMITED = 2**60
"""Version 1 says of no limit that it is as large as can be."""


def free_host_memory(root: Path = Path("/")) -> float:
    """Bytes.

    Args:
        root: where the system's files are.
    """
    return float(min([psutil.virtual_memory().available, *_left_in_groups(root)]))


def give_back() -> None:
    """Give the kernel what was freed: glibc keeps it for this process, gigabytes of activations after a training."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # other C libraries give it back themselves
        trim(0)


def _left_in_groups(root: Path) -> Iterator[int]:
    """What is left of each limit that this process is under; none may be known."""
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _left(mounted, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            yield from _left(mounted / "memory", path, *names)


def _left(mounted: Path, path: str, limit: str, used: str, given_back: str) -> Iterator[int]:
    """Of a group and all groups around it; in a container, its own is the root that it sees."""
    inner = PurePosixPath(path).relative_to("/")
    for group in dict.fromkeys((mounted / inner, *(mounted / parent for parent in inner.parents), mounted)):
        most, now = _read(group / limit).strip(), _read(group / used).strip()
        if most.isdecimal() and now.isdecimal() and int(most) < _V1_UNLIMITED:
            yield max(0, int(most) - max(0, int(now) - _stat(group / "memory.stat").get(given_back, 0)))


def _stat(path: Path) -> Mapping[str, int]:
    pairs = (line.split() for line in _read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _read(path: Path) -> str:
    """A file of the kernel's; nothing where it is not, or may not be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
