"""Starting real ranks: processes that meet over gloo and run one module, as a launcher would start them."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flare_ds.processes import free_port

REPOSITORY = Path(__file__).resolve().parent.parent


def rank_environment(rank: int, world_size: int, port: str) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def start_ranks(arguments: list[str], world_size: int, **environment: str) -> list[subprocess.Popen]:
    """Start `python -m ARGUMENTS` on every rank, with more environment variables if given."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=REPOSITORY,
            env=rank_environment(rank, world_size, port) | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]


def run_ranks(
    arguments: list[str], world_size: int, *, timeout: float = 560, expect: int = 0, **environment: str
) -> list[str]:
    """Run `python -m ARGUMENTS` on every rank to its end; returns each rank's output."""
    processes = start_ranks(arguments, world_size, **environment)
    try:
        # All at once: a rank whose output nobody reads stops when the pipe is full, and the others wait for it.
        with ThreadPoolExecutor(world_size) as pool:
            outputs = list(pool.map(lambda process: process.communicate(timeout=timeout)[0], processes))
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    assert codes == [expect] * world_size, f"exit codes {codes}\n" + "\n----\n".join(out[-4000:] for out in outputs)
    return outputs
