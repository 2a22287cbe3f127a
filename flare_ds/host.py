"""What this host has for processes that share it: GPUs by name, and threads."""

from collections.abc import Mapping

from flare_ds.worker_process import available_cores


def gpu_names(environ: Mapping[str, str], visible: int) -> list[str]:
    """The GPUs that a process sees, as CUDA_VISIBLE_DEVICES names them for another.

    Args:
        environ: of the process.
        visible: how many it sees.
    """
    named = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or list(map(str, range(visible))))[:visible]


def threads(processes: int, environ: Mapping[str, str]) -> dict[str, str]:
    """The cores that this process may use, shared out, unless the user says otherwise; for the environment of each."""
    return {"OMP_NUM_THREADS": environ.get("OMP_NUM_THREADS") or str(max(1, available_cores() // processes))}
