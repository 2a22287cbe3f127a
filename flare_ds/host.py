"""What this host has for its processes: GPUs by name, cores, threads, open files; and the memory that one has held."""

import os
import resource
from collections.abc import Mapping
from contextlib import suppress


def gpu_variable(environ: Mapping[str, str]) -> str:
    """The variable that says which GPUs a process sees: with ROCm its own goes before CUDA's, where it is set."""
    import torch

    return "HIP_VISIBLE_DEVICES" if torch.version.hip and "HIP_VISIBLE_DEVICES" in environ else "CUDA_VISIBLE_DEVICES"


def gpu_names(environ: Mapping[str, str], visible: int) -> list[str]:
    """The GPUs that a process was given, as `gpu_variable` names them for another.

    They are as many as it sees; only of slices of GPUs (MIG) does a process see one, however many it was given.
    """
    if not visible:
        return []
    named = [name.strip() for name in environ.get(gpu_variable(environ), "").split(",") if name.strip()]
    if named and all(name.startswith("MIG-") for name in named):
        return named
    return (named or list(map(str, range(visible))))[:visible]


def visible_gpus() -> int:
    """How many this process may use: none where DS_ACCELERATOR says cpu."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return 0
    import torch  # which most of those who ask about the host do not wait for

    return torch.cuda.device_count()


def available_cores() -> int:
    """The cores this process may run on; all of the host where a system, as macOS, does not say which."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(processes: int, environ: Mapping[str, str]) -> dict[str, str]:
    """The cores that this process may use, shared out, unless the user says otherwise; for the environment of each."""
    return {"OMP_NUM_THREADS": environ.get("OMP_NUM_THREADS") or str(max(1, available_cores() // processes))}


def allocation(environ: Mapping[str, str]) -> dict[str, str]:
    """How torch is to allocate a GPU's memory, unless the user says it; for the environment, before torch is imported.

    Rows of many lengths and gathered layers leave holes between fixed segments.
    """
    names = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"  # torch reads the later where the first is not set
    return {} if any(name in environ for name in names) else {names[0]: "expandable_segments:True"}


def open_more_files() -> None:
    """Let this process, and those it starts, have as many files open as the host allows: each run maps some dozens."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS says "any number", and takes less
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def peak_memory() -> int:
    """The most memory this process has held, in bytes: of its GPU, or of the host where it uses none."""
    import torch

    if visible_gpus():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
