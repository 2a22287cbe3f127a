"""Which of how many ranks this process is, as whoever started it says in the environment.

deepspeed, torchrun, a training operator   RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, and LOCAL_RANK
srun, plain                                SLURM_PROCID, SLURM_STEP_NUM_TASKS (or SLURM_NTASKS), SLURM_LOCALID; rank 0
                                           is on the first host
mpirun                                     OMPI_COMM_WORLD_*, or PMI_* (MPICH, Intel MPI)
nobody                                     one rank, alone
"""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from flare_ds.exceptions import HostError
from flare_ds.processes import free_port

_TORCHRUN = "torchrun --nproc-per-node 2 -m flare_ds VERB CONFIG"
_PORTS = 20_000
"""Ports from here on are given to jobs whose starter names none, and as many there are."""


@dataclass(frozen=True)
class Place:
    """This process among the ranks of its job.

    Attributes:
        local_rank: its number among those of this host.
        address: of the host of rank 0.
        port: where rank 0 waits for the others.
        told_by: the variables that said so.
    """

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: str
    told_by: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables that torch and DeepSpeed look for."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": self.port,
        }


def launched_among(environ: Mapping[str, str]) -> int:
    """How many processes a launcher has surely started, of which this is one; 1 where a user's shell may be it.

    A shell in an operator's pod has RANK and WORLD_SIZE, but no LOCAL_RANK; one in a batch job has what Slurm says.
    """
    size = environ.get("WORLD_SIZE", "")
    return int(size) if "RANK" in environ and "LOCAL_RANK" in environ and size.isdecimal() else 1


def place_of(environ: Mapping[str, str]) -> Place:
    """Read a process's place from its environment.

    Raises:
        HostError: variables are missing, or contradict one another; it names them, and the command to use.
    """
    if "RANK" in environ or environ.get("WORLD_SIZE", "1") != "1":
        return _given(environ)
    if _is_slurm_task(environ):
        return _of_slurm(environ)
    for size, rank, local_rank, local_size in _MPI:
        if environ.get(size, "1") != "1":
            return _of_mpi(environ, size, rank, local_rank, local_size)
    _refuse_unread(environ)
    return Place(0, 1, 0, "127.0.0.1", free_port(), "")


_MPI = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


def _given(environ: Mapping[str, str]) -> Place:
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    found = " ".join(f"{name}={environ[name]}" for name in names if name in environ)
    missing = [name for name in names if name not in environ]
    if missing and _number(environ, "WORLD_SIZE", missing=1) == 1 and _number(environ, "RANK", missing=0) == 0:
        return Place(0, 1, 0, "127.0.0.1", free_port(), found)  # alone, whatever else is said
    if missing:
        unset = " ".join(name for name in names if name in environ)
        fix = f"unset {unset} to run alone, or set all four; a launcher does: {_TORCHRUN}"
        raise HostError(f"{found} in the environment, but no {', '.join(missing)}", fix=fix)
    rank, world_size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    _check_range(rank, world_size, found)
    _check_same_as_slurm(environ, rank, world_size, found)
    local_rank = environ.get("LOCAL_RANK") or environ.get("SLURM_LOCALID") or "0"  # an operator's pod has one process
    return Place(rank, world_size, int(local_rank), environ["MASTER_ADDR"], environ["MASTER_PORT"], found)


def _check_same_as_slurm(environ: Mapping[str, str], rank: int, world_size: int, found: str) -> None:
    """Refuse a RANK that every task of srun was handed alike; a launcher inside a task counts for itself."""
    launched = "LOCAL_WORLD_SIZE" in environ or "LOCAL_SIZE" in environ
    if launched or not _is_slurm_task(environ):
        return
    size = _slurm_size(environ)
    if (_number(environ, "SLURM_PROCID"), _number(environ, size)) != (rank, world_size):
        told = f"SLURM_PROCID={environ['SLURM_PROCID']} {size}={environ[size]}"
        raise HostError(f"{found}, but {told}", fix="unset RANK and WORLD_SIZE; srun tells every task its own")


def _is_slurm_task(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process as one of several; a batch script itself has SLURM_PROCID=0, and no step."""
    of_several = environ.get(_slurm_size(environ), "1") != "1" and "SLURM_PROCID" in environ
    return of_several and not (environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in environ)


def _slurm_size(environ: Mapping[str, str]) -> str:
    """What says how many tasks this is one of; in the shell of salloc, one task, SLURM_NTASKS is the job's."""
    return "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"


def _of_slurm(environ: Mapping[str, str]) -> Place:
    size = _slurm_size(environ)
    rank, world_size = _number(environ, "SLURM_PROCID"), _number(environ, size)
    told = f"SLURM_PROCID={rank} {size}={world_size}"
    _check_range(rank, world_size, told)
    if "SLURM_LOCALID" not in environ:
        raise HostError(f"{told} in the environment, but no SLURM_LOCALID", fix="start it with srun, or unset SLURM_*")
    job = _number(environ, "SLURM_JOB_ID", missing=0) + _number(environ, "SLURM_STEP_ID", missing=0)
    port = environ.get("MASTER_PORT") or str(_PORTS + job % _PORTS)
    return Place(rank, world_size, _number(environ, "SLURM_LOCALID"), _first_host(environ), port, told)


def _first_host(environ: Mapping[str, str]) -> str:
    """The host of task 0."""
    if address := environ.get("MASTER_ADDR"):
        return address
    if environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES")) == "1":
        return "127.0.0.1"
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    if nodes is None:
        raise HostError(
            f"{_slurm_size(environ)} is above 1, but there is neither SLURM_JOB_NODELIST nor MASTER_ADDR",
            fix="start it with srun, or set MASTER_ADDR to the host of task 0",
        )
    try:
        told = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        return told.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return _first_of(nodes)


def _first_of(nodes: str) -> str:
    """`node03` of `node[03-05,09],gpu1`, as far as that can be read without Slurm's own tool."""
    name, bracket, rest = re.split(r",(?![^\[]*\])", nodes)[0].partition("[")
    return name + (re.split(r"[-,\]]", rest)[0] if bracket else "")


def _of_mpi(environ: Mapping[str, str], *names: str) -> Place:
    size_name, rank_name, local_rank_name, local_size_name = names
    told = " ".join(f"{name}={environ[name]}" for name in (rank_name, size_name) if name in environ)
    world_size, rank = _number(environ, size_name), _number(environ, rank_name)
    _check_range(rank, world_size, told)
    if missing := [name for name in (local_rank_name, "MASTER_ADDR") if name not in environ]:
        alone = environ.get(local_size_name) == str(world_size)
        if not alone or local_rank_name in missing:
            raise HostError(
                f"{told} in the environment, but no {', '.join(missing)}",
                fix="mpirun -x MASTER_ADDR=HOST_OF_RANK_0 -x MASTER_PORT=29500 python -m flare_ds VERB CONFIG",
            )
    address = environ.get("MASTER_ADDR", "127.0.0.1")
    # All ranks of this host have one parent, so they agree on a port that no other job of the host has.
    port = environ.get("MASTER_PORT") or str(_PORTS + os.getppid() % _PORTS)
    return Place(rank, world_size, _number(environ, local_rank_name), address, port, told)


def _refuse_unread(environ: Mapping[str, str]) -> None:
    """Refuse what says that there are several processes, but not which of them this is."""
    if environ.get("PET_NNODES", "1") != "1":
        fix = "start it with torchrun, which reads PET_*: torchrun -m flare_ds VERB CONFIG"
        raise HostError(f"PET_NNODES={environ['PET_NNODES']} in the environment, but no RANK", fix=fix)
    if environ.get("PMIX_RANK", "0") != "0":
        fix = f"use mpirun of Open MPI, srun, or {_TORCHRUN}"
        raise HostError(f"PMIX_RANK={environ['PMIX_RANK']} in the environment, but no number of ranks", fix=fix)


def _check_range(rank: int, world_size: int, told: str) -> None:
    if not 0 <= rank < world_size:
        raise HostError(f"{told} in the environment: there is no such rank", fix=f"unset them, or use {_TORCHRUN}")


def _number(environ: Mapping[str, str], name: str, *, missing: int | None = None) -> int:
    text = environ.get(name, None if missing is None else str(missing))
    if text is None or not text.isdecimal():
        told = f"no {name} in the environment" if text is None else f"{name}={text!r} in the environment is no number"
        raise HostError(told, fix=f"unset it to run alone, or let a launcher set it: {_TORCHRUN}")
    return int(text)
