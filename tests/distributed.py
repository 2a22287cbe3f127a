"""Starting real ranks: processes that meet over gloo and run one module, as a launcher would start them."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flare_ds.processes import free_port
from tests.ready_ranks import ReadyRank

REPOSITORY = Path(__file__).resolve().parent.parent


_READ_WHEN_USED = ("FLARE_DS_", "CHAOS_")
"""Variables of the package and of the tests; neither looks at its own before it runs."""
Rank = subprocess.Popen | ReadyRank


def inherited() -> dict[str, str]:
    """The environment, without what says that this process is a rank: a test in it may have formed a group of one."""
    own = ("PYTEST_CURRENT_TEST", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in own}


def shared_environment() -> dict[str, str]:
    """What every rank of every test has in its environment, if nothing is changed for it."""
    return {
        **inherited(),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def rank_environment(rank: int, world_size: int, port: str) -> dict[str, str]:
    return {
        **shared_environment(),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def start_ranks(arguments: list[str], world_size: int, **environment: str) -> Sequence[Rank]:
    """Start `python -m ARGUMENTS` on every rank, with more environment variables if given.

    Those of libraries start from nothing, since these read them as they are imported; the others are forked.
    """
    port = free_port()
    environments = [rank_environment(rank, world_size, port) | environment for rank in range(world_size)]
    if any(not name.startswith(_READ_WHEN_USED) for name in environment):
        return [start_afresh(arguments, own) for own in environments]
    return [ReadyRank(rank, arguments, own, shared_environment()) for rank, own in enumerate(environments)]


def start_afresh(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen:
    """Start `python -m ARGUMENTS` as a new process."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


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


def told(output: str) -> list[str]:
    """What flare_ds said, but for a rank that told that it waits for others: on a busy machine one is late."""
    return re.findall(r"flare-ds: (?!\[rank \d+ on \S+\] waiting for ).*", output)
