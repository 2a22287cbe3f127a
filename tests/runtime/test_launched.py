"""Which rank a process is, from the environments that launchers make; contradictions are refused by name."""

import os

import pytest

from flare_ds.exceptions import HostError
from flare_ds.runtime.launched import place_of

GIVEN = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
TASK = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "2", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
SHELL = {
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_ID": "4294967290",
    "SLURM_STEP_NUM_TASKS": "1",
}
"""The shell of salloc where Slurm starts it on a node: a step of one task, with the variables of its job."""
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALRANKID": "0", "MASTER_ADDR": "node1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "rank", "world_size", "local_rank", "address"),
    [
        ({}, 0, 1, 0, "127.0.0.1"),
        (GIVEN | {"LOCAL_RANK": "1"}, 3, 8, 1, "node1"),
        (GIVEN, 3, 8, 0, "node1"),  # a training operator's pod, of one process
        ({"RANK": "0"}, 0, 1, 0, "127.0.0.1"),
        (TASK | {"SLURM_STEP_NODELIST": "gpu[07-08,11]", "SLURM_STEP_NUM_NODES": "3"}, 3, 4, 1, "gpu07"),
        (TASK | {"SLURM_JOB_NODELIST": "a-1,b[2-3]"}, 3, 4, 1, "a-1"),
        (TASK | {"SLURM_NNODES": "1"}, 3, 4, 1, "127.0.0.1"),
        (TASK | {"MASTER_ADDR": "head"}, 3, 4, 1, "head"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "ENVIRONMENT": "BATCH"}, 0, 1, 0, "127.0.0.1"),
        ({"SLURM_NTASKS": "4"}, 0, 1, 0, "127.0.0.1"),  # the shell of salloc
        (SHELL, 0, 1, 0, "127.0.0.1"),
        (SHELL | {"ENVIRONMENT": "BATCH"}, 0, 1, 0, "127.0.0.1"),  # of a job that was submitted there
        (SHELL | OPEN_MPI, 1, 2, 1, "127.0.0.1"),
        (SHELL | GIVEN, 3, 8, 0, "node1"),
        (TASK | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NNODES": "1"}, 3, 4, 1, "127.0.0.1"),
        (TASK | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "8", "SLURM_NNODES": "1"}, 3, 4, 1, "127.0.0.1"),
        (OPEN_MPI, 1, 2, 1, "127.0.0.1"),
        (MPICH, 1, 2, 0, "node1"),
    ],
)
def test_a_place_is_read(
    environment: dict[str, str], rank: int, world_size: int, local_rank: int, address: str
) -> None:
    place = place_of(environment)
    assert (place.rank, place.world_size, place.local_rank, place.address) == (rank, world_size, local_rank, address)


def test_all_ranks_of_a_job_agree_on_a_port_that_another_job_does_not_have() -> None:
    task = TASK | {"SLURM_NNODES": "1"}
    assert place_of(task).port == place_of(task | {"SLURM_PROCID": "0"}).port
    assert place_of(task).port != place_of(task | {"SLURM_JOB_ID": "78"}).port
    assert place_of(OPEN_MPI).port == str(20_000 + os.getppid() % 20_000)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"RANK": "1"}, "RANK=1 in the environment, but no WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "no MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "no RANK"),
        (GIVEN | {"RANK": "8"}, "there is no such rank"),
        (GIVEN | {"RANK": "first"}, "RANK='first'"),
        (GIVEN | TASK | {"RANK": "0", "WORLD_SIZE": "1"}, "but SLURM_PROCID=3 SLURM_NTASKS=4"),
        (GIVEN | TASK | {"RANK": "0", "SLURM_STEP_NUM_TASKS": "5"}, "but SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=5"),
        ({name: value for name, value in TASK.items() if name != "SLURM_LOCALID"}, "no SLURM_LOCALID"),
        (TASK, "neither SLURM_JOB_NODELIST nor MASTER_ADDR"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "no MASTER_ADDR"),
        ({"PET_NNODES": "2"}, "PET_NNODES=2"),
        ({"PMIX_RANK": "1"}, "PMIX_RANK=1"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(environment: dict[str, str], named: str) -> None:
    with pytest.raises(HostError) as refused:
        place_of(environment)
    assert named in refused.value.problem and refused.value.fix


def test_a_launcher_within_a_task_of_srun_counts_for_itself() -> None:
    assert place_of(GIVEN | TASK | {"LOCAL_WORLD_SIZE": "8"}).rank == 3
