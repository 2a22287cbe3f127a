"""slurm.sbatch and slurm_task.sh, where `srun`, `scontrol` and `nvidia-smi` are little scripts on the PATH.

Distributed tests start real processes that meet in a real all_reduce; a real Slurm is in test_two_hosts.py.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from flare_ds.processes import free_port
from tests.launchers.shell import LAUNCHERS, PROBE, ROOT, assert_one_message, run, what_ranks_saw, write_program

# One local process for each node, told apart by SLURM_NODEID. When one fails the others are killed, as srun ends by
# doing under --kill-on-bad-exit. It refuses a call without what Slurm needs to be told.
FAKE_SRUN = """#!/usr/bin/env bash
for flag in nodes=2 ntasks=2 ntasks-per-node=1 "cpus-per-task=$SLURM_CPUS_ON_NODE" kill-on-bad-exit=1; do
    [[ " $* " == *" --$flag "* ]] || exit 90
done
[[ "$SLURM_EXPORT_ENV" == ALL ]] || exit 91
nodes=0
while [[ "$1" == --* ]]; do
    [[ "$1" == --nodes=* ]] && nodes="${1#*=}"
    shift
done
pids=()
for ((node = 0; node < nodes; node++)); do
    SLURM_NODEID=$node SLURM_PROCID=$node "$@" &
    pids+=($!)
done
for _ in "${pids[@]}"; do
    wait -n || { status=$?; kill -KILL "${pids[@]}" 2>/dev/null; exit $status; }
done
"""


def slurm_job(tmp_path: Path, clone: Path) -> dict[str, str]:
    """The environment of a job of two nodes, both of them this machine."""
    write_program(tmp_path / "slurm/srun", FAKE_SRUN)
    expand = 'printf "%s\\n" localhost localhost'
    write_program(tmp_path / "slurm/scontrol", f'#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && {expand}\n')
    return {
        "PATH": f"{tmp_path / 'slurm'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "6",
        "SLURM_SUBMIT_DIR": str(clone),
        "MASTER_PORT": free_port(),
        "PROBE_OUT": str(clone / "seen"),
    }


def test_slurm_starts_one_task_a_node_and_their_ranks_meet(clone: Path, tmp_path: Path) -> None:
    spooled = shutil.copy(LAUNCHERS / "slurm.sbatch", tmp_path / "slurm_script")  # as sbatch runs it
    result = run(["bash", spooled, "train", "run.yaml", "a=b c"], cwd=tmp_path, **slurm_job(tmp_path, clone))
    assert result.returncode == 0, result.stderr
    assert what_ranks_saw(clone) == ["2 11 0 train run.yaml a=b c", "2 11 0 train run.yaml a=b c"]


def test_slurm_fails_when_a_rank_fails(clone: Path, tmp_path: Path) -> None:
    write_program(clone / "flare_ds/__main__.py", PROBE + "\nsys.exit(int(os.environ['RANK']))\n")
    result = run(["bash", LAUNCHERS / "slurm.sbatch", "train"], **slurm_job(tmp_path, clone))
    assert result.returncode == 1
    assert len(what_ranks_saw(clone)) == 2


def test_a_slurm_job_that_is_to_be_continued_is_queued_again(clone: Path, tmp_path: Path) -> None:
    write_program(clone / "flare_ds/__main__.py", "raise SystemExit(75)\n")
    job = slurm_job(tmp_path, clone)
    expand = f'[ "$1" = show ] && echo localhost localhost | tr " " "\\n" || echo "$@" >>{tmp_path}/requeued\n'
    write_program(tmp_path / "slurm/scontrol", f"#!/bin/sh\n{expand}")
    assert run(["bash", LAUNCHERS / "slurm.sbatch", "train"], **job).returncode == 75
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"


def task_environment(tmp_path: Path, *, node: int, nodes: int) -> dict[str, str]:
    """What slurm.sbatch and Slurm give a node's task."""
    job = {"SLURM_NODEID": str(node), "SLURM_JOB_NUM_NODES": str(nodes), "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    return {**job, "FLARE_DS_CONTINUED": str(tmp_path / "continued")}


# One write a line, so that ranks do not tear each other's.
TELL = """
import os
line = " ".join(os.environ.get(name, "-") for name in os.environ["TELL"].split())
os.write(1, f"{line}\\n".encode())
"""


def gpu_machine(tmp_path: Path, gpus: int) -> str:
    """A PATH on which nvidia-smi lists so many GPUs, each cut in two."""
    lines = "".join(f"GPU {number}: X (UUID: GPU-{number})\n  MIG 1g\n  MIG 1g\n" for number in range(gpus))
    write_program(tmp_path / "gpus/nvidia-smi", f"#!/bin/sh\ncat <<'EOF'\n{lines}EOF\n")
    write_program(tmp_path / "gpus/nproc", "#!/bin/sh\necho 96\n")
    return f"{tmp_path / 'gpus'}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("gpus", "environment", "ranks", "threads"),
    [
        (2, {}, 2, 48),
        (8, {}, 8, 12),
        (8, {"CUDA_VISIBLE_DEVICES": "0,1"}, 2, 48),
        (8, {"CUDA_VISIBLE_DEVICES": "1,-1,3"}, 1, 96),
        (8, {"CUDA_VISIBLE_DEVICES": "MIG-1f4a,GPU-77b2,MIG-GPU-9/1/0"}, 3, 32),
        (8, {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_ON_NODE": "4"}, 4, 24),
        (8, {"SLURM_GPUS_ON_NODE": "4", "PROCESSES_PER_NODE": "3"}, 3, 32),
        (0, {"ROCR_VISIBLE_DEVICES": "0,1,2"}, 3, 32),
        (0, {"HIP_VISIBLE_DEVICES": "5"}, 1, 96),
        (8, {"DS_ACCELERATOR": "cpu"}, 1, 96),
        (8, {"DS_ACCELERATOR": "cpu", "PROCESSES_PER_NODE": "2"}, 2, 48),
        (2, {"OMP_NUM_THREADS": "5"}, 2, 5),
        (0, {}, None, None),
        (8, {"CUDA_VISIBLE_DEVICES": ""}, None, None),
        (8, {"CUDA_VISIBLE_DEVICES": "-1"}, None, None),
        (8, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None, None),
        (0, {"DS_ACCELERATOR": "cuda"}, None, None),
    ],
)
def test_a_slurm_task_has_a_rank_for_each_gpu_of_the_job(
    gpus: int, environment: dict[str, str], ranks: int | None, threads: int | None, clone: Path, tmp_path: Path
) -> None:
    write_program(clone / "flare_ds/__main__.py", TELL)
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_SIZE OMP_NUM_THREADS DS_ACCELERATOR PYTORCH_CUDA_ALLOC_CONF"
    job = task_environment(tmp_path, node=1, nodes=2) | {"TELL": names}
    path = f"{Path(sys.executable).parent}:{gpu_machine(tmp_path, gpus)}"
    accelerator = {"DS_ACCELERATOR": ""} | environment  # set to nothing: not said
    # From the clone, where `python -m flare_ds` finds the program above.
    result = run(["bash", "launchers/slurm_task.sh", "train"], cwd=clone, PATH=path, **job, **accelerator)
    if ranks is None:
        assert_one_message(result, f"no GPU is visible on {os.uname().nodename}", "DS_ACCELERATOR=cpu")
        return
    assert result.returncode == 0, result.stderr
    where = "cpu -" if environment.get("DS_ACCELERATOR") == "cpu" else "cuda expandable_segments:True"
    expected = [f"{ranks + i} {i} {2 * ranks} {ranks} {threads} {where}" for i in range(ranks)]
    assert sorted(result.stdout.splitlines()) == sorted(expected)


# As GNU's, which believes OMP_NUM_THREADS.
NPROC = '#!/bin/sh\necho "${OMP_NUM_THREADS:-%d}"\n'


@pytest.mark.parametrize(("cores", "threads", "told"), [(1, "", True), (2, "", False), (2, "1", False)])
def test_a_slurm_task_with_fewer_cores_than_ranks_says_so(
    cores: int, threads: str, told: bool, clone: Path, tmp_path: Path
) -> None:
    write_program(clone / "flare_ds/__main__.py", "")
    path = f"{Path(sys.executable).parent}:{gpu_machine(tmp_path, 2)}"
    write_program(tmp_path / "gpus/nproc", NPROC % cores)
    job = task_environment(tmp_path, node=0, nodes=1) | {"DS_ACCELERATOR": "", "OMP_NUM_THREADS": threads}
    result = run(["bash", "launchers/slurm_task.sh", "train"], cwd=clone, PATH=path, **job)
    said = f"cores on {os.uname().nodename}: 1, ranks: 2; for more cores, sbatch --exclusive or --cpus-per-task=N\n"
    assert (result.returncode, result.stderr) == (0, said if told else "")


def test_every_sbatch_that_we_print_asks_for_cores() -> None:
    """Slurm gives a task one, unless the site says otherwise."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *LAUNCHERS.glob("configs/*.yaml"), LAUNCHERS / "slurm.sbatch"]
    lines = [line for page in pages for line in page.read_text().splitlines() if "sbatch --" in line]
    typed = [line for line in lines if re.search(r"sbatch --[a-z].* (launchers/slurm.sbatch|--wrap)", line)]
    assert len(typed) >= 8
    assert [line for line in typed if not re.search(r" --exclusive | --cpus-per-task=\d+ ", line)] == []


def test_a_slurm_task_waits_while_its_ranks_save_and_leaves_word(clone: Path, tmp_path: Path) -> None:
    """Its own status is 0: with another, Slurm would kill the other nodes' tasks, which may still be saving."""
    stop = "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), sys.exit(75)))\n"
    write_program(clone / "flare_ds/__main__.py", stop + "os.killpg(0, signal.SIGTERM)\ntime.sleep(60)\n")
    job = task_environment(tmp_path, node=0, nodes=1)
    assert run(["bash", "launchers/slurm_task.sh", "train"], cwd=clone, **job).returncode == 0
    assert Path(job["FLARE_DS_CONTINUED"]).exists()


@pytest.mark.parametrize(
    ("change", "problem", "fix"),
    [
        ({"SLURM_JOB_NODELIST": ""}, "not inside a SLURM job", "sbatch"),
        ({"SLURM_JOB_NODELIST": "unknown"}, "scontrol names no host for unknown", "scontrol"),
        ({"SLURM_SUBMIT_DIR": "/"}, "is not the clone", "root of the clone"),
    ],
)
def test_slurm_says_what_is_missing(
    change: dict[str, str], problem: str, fix: str, clone: Path, tmp_path: Path
) -> None:
    result = run(["bash", LAUNCHERS / "slurm.sbatch", "train"], **{**slurm_job(tmp_path, clone), **change})
    assert_one_message(result, problem, fix)


def test_the_slurm_task_is_not_started_by_hand() -> None:
    assert_one_message(run([LAUNCHERS / "slurm_task.sh", "train"]), "not started by slurm.sbatch", "sbatch")
