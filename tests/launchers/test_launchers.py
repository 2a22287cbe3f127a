"""The launchers: their help, each bad input's one message, and real ranks started through srun and a hostfile.

Nothing here installs or downloads. `srun`, `scontrol` and the tools whose absence or answer matters are little scripts
put on (or left off) the PATH. Distributed tests start real processes that meet in a real all_reduce.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flare_ds.processes import free_port

ROOT = Path(__file__).parents[2]
LAUNCHERS = ROOT / "launchers"
SCRIPTS = sorted([*LAUNCHERS.glob("*.sh"), *LAUNCHERS.glob("*.sbatch"), ROOT / ".ci/run"])
HELPFUL = ["quickstart.sh", "test.sh", "hostfile.sh", "slurm.sbatch", "slurm_task.sh"]
TOOLS = ["bash", "awk", "dirname", "realpath", "getconf", "nproc", "grep", "cat", "mkdir", "df", "flock", "sha256sum"]
TOOLS += ["find", "mv", "tee", "tail", "env", "uname", "sed", "mktemp", "rm", "hostname", "sleep"]

# Joins the ranks that the launcher's environment describes, and writes what this rank saw.
PROBE = """
import os, sys
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor([10.0 ** dist.get_rank()])
dist.all_reduce(total)
arguments = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
with open(f"{os.environ['PROBE_OUT']}/{dist.get_rank()}", "w") as file:
    print(dist.get_world_size(), int(total), os.environ["LOCAL_RANK"], *arguments, file=file)
dist.destroy_process_group()
"""

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


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def run(command: list[str | Path], cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a launcher in a small environment of its own: nothing of the caller's but the PATH and HOME."""
    inherited = {name: os.environ[name] for name in ("HOME", "TORCH_EXTENSIONS_DIR") if name in os.environ}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "PYTHON": sys.executable, "DS_ACCELERATOR": "cpu", **inherited, **environment}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    try:
        stdout, stderr = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def tool_path(tmp_path: Path) -> Path:
    """A PATH directory with the basic tools and nothing else: no compiler, no Python, no DeepSpeed."""
    directory = tmp_path / "tools"
    directory.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None, tool
        (directory / tool).symlink_to(found)
    return directory


def assert_one_message(result: subprocess.CompletedProcess[str], problem: str, fix: str) -> None:
    """The launcher failed, and its last two lines, and only those, say what is wrong and what to do."""
    assert result.returncode == 1, result.stderr
    *before, last, advice = result.stderr.rstrip().splitlines()
    assert last.startswith("error: ") and problem in last
    assert advice.startswith("  fix: ") and fix in advice
    assert not [line for line in before if not line.startswith("==")], before


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with our launchers, in which flare_ds is the probe."""
    clone = tmp_path / "clone"
    shutil.copytree(LAUNCHERS, clone / "launchers")
    for name in ("setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, clone)
    write_program(clone / "flare_ds/__main__.py", PROBE)
    (clone / "seen").mkdir()
    return clone


def what_ranks_saw(clone: Path) -> list[str]:
    return [file.read_text().strip() for file in sorted((clone / "seen").iterdir())]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_parse(script: Path) -> None:
    assert run(["bash", "-n", script]).stderr == ""
    assert "set -euo pipefail" in script.read_text(encoding="utf-8") or script.name == "common.sh"
    assert os.access(script, os.X_OK) or script.suffix == ".sbatch" or script.name == "common.sh"


@pytest.mark.parametrize("name", HELPFUL)
def test_help_shows_the_usage_and_nothing_else(name: str, tmp_path: Path) -> None:
    result = run(["bash", LAUNCHERS / name, "--help"], cwd=tmp_path, PATH=str(tool_path(tmp_path)))
    assert result.returncode == 0, result.stderr
    assert f"launchers/{name}" in result.stdout
    assert "set -e" not in result.stdout and "#" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "problem", "fix"),
    [
        (["--langauges", "pl"], "unknown option --langauges", "--help"),
        (["--model"], "--model needs a value", "--help"),
        (["--model", "gpt5"], "--model gpt5 is neither", "check the name"),
        (["--data", "no/such"], "no such directory: --data no/such", "check the path"),
        (["--config", "no.yaml"], "no such file: --config no.yaml", "check the path"),
        (["--config", "setup.py", "--languages", "pl es"], "--languages pl es", "pl,es"),
        (["steps", "5"], "cannot read the argument steps", "key=value"),
    ],
)
def test_quickstart_refuses_bad_arguments(arguments: list[str], problem: str, fix: str) -> None:
    if "--config" not in arguments:
        arguments = ["--config", "setup.py", *arguments]
    assert_one_message(run([LAUNCHERS / "quickstart.sh", *arguments]), problem, fix)


@pytest.mark.parametrize("name", ["quickstart.sh", "test.sh"])
def test_an_old_python_is_named(name: str, clone: Path, tmp_path: Path) -> None:
    old = write_program(tmp_path / "bin/python3", "#!/bin/sh\necho 3.9\n").parent
    write_program(old / "g++", "#!/bin/sh\n")
    (clone / "launchers/configs/quickstart.yaml").write_text("")
    result = run([clone / "launchers" / name], PATH=f"{old}:{os.environ['PATH']}", PYTHON="python3")
    assert_one_message(result, "python3 is Python 3.9, but 3.11 or newer is needed", "PYTHON=")


def test_a_missing_python_is_named(tmp_path: Path) -> None:
    result = run(
        [LAUNCHERS / "quickstart.sh", "--no-install", "--config", "setup.py"], PYTHON=str(tmp_path / "python3")
    )
    assert_one_message(result, "no Python:", "PYTHON=")


@pytest.mark.parametrize("arguments", [["quickstart.sh", "--config", "setup.py"], ["test.sh"]])
def test_a_missing_compiler_is_named(arguments: list[str], tmp_path: Path) -> None:
    result = run([LAUNCHERS / arguments[0], *arguments[1:]], PATH=str(tool_path(tmp_path)), CXX="icpx")
    assert_one_message(result, "no C++ compiler: none of $CXX=icpx, c++, g++ and clang++", "apt install g++")


def test_too_little_memory_is_named(tmp_path: Path) -> None:
    small = write_program(tmp_path / "bin/getconf", '#!/bin/sh\n[ "$1" = PAGE_SIZE ] && echo 4096 || echo 1000000\n')
    write_program(small.parent / "g++", "#!/bin/sh\n")
    path = f"{small.parent}:{os.environ['PATH']}"
    result = run([LAUNCHERS / "quickstart.sh", "--config", "setup.py"], PATH=path)
    assert_one_message(result, "4 GB of memory, but 12 GB are needed", "--model DIR")


def test_too_little_disk_is_named(clone: Path, tmp_path: Path) -> None:
    df = '#!/bin/sh\necho "Filesystem 1024-blocks Used Available Capacity Mounted"\necho "/dev/x 9 9 3000000 9% /"\n'
    full = write_program(tmp_path / "bin/df", df).parent
    write_program(full / "g++", "#!/bin/sh\n")
    result = run([clone / "launchers/test.sh"], PATH=f"{full}:{os.environ['PATH']}")
    assert_one_message(result, "3 GB of free disk, but 6 GB are needed", "FLARE_DS_VENV")


def environment_with_pip(tmp_path: Path, pip: str) -> Path:
    """A finished-looking virtual environment whose `python -m pip install` is the shell text given."""
    venv = tmp_path / "venv"
    script = f"""#!/usr/bin/env bash
[[ "$*" == "-m pip --version" ]] && exit
[[ "$1" == -c ]] && exec {sys.executable} -c "import sys; sys.executable = '{venv}/bin/python'; $2"
echo "$*" >>{venv}/calls
{pip}
"""
    write_program(venv / "bin/python", script)
    return venv


@pytest.mark.parametrize(
    ("pip", "problem", "fix"),
    [
        ("echo 'WARNING: NewConnectionError: name resolution'; exit 1", "no network", "HTTPS_PROXY"),
        ("echo 'ERROR: [Errno 28] No space left on device'; exit 1", "is full", "free 6 GB"),
        ("echo 'ERROR: no matching distribution'; exit 1", "ERROR: no matching distribution", "install.log"),
    ],
)
def test_a_failing_installation_is_explained(clone: Path, tmp_path: Path, pip: str, problem: str, fix: str) -> None:
    venv = environment_with_pip(tmp_path, pip)
    write_program(tmp_path / "bin/g++", "#!/bin/sh\n")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    result = run([clone / "launchers/test.sh"], PATH=path, FLARE_DS_VENV=str(venv))
    assert_one_message(result, problem, fix)


def test_what_is_installed_is_not_installed_again_until_the_pins_change(clone: Path, tmp_path: Path) -> None:
    venv = environment_with_pip(tmp_path, "exit 0")
    install = f"set -euo pipefail; source {clone}/launchers/common.sh; install quickstart"

    def calls() -> int:
        assert run(["bash", "-c", install], FLARE_DS_VENV=str(venv), DS_ACCELERATOR="").returncode == 0
        return len((venv / "calls").read_text().splitlines())

    assert [calls(), calls()] == [2, 2]  # torch, then the package
    first, second = (venv / "calls").read_text().splitlines()
    assert "torch==" in first and second.endswith(f"-e {clone}[quickstart]")
    with (clone / "constraints.txt").open("a") as constraints:
        constraints.write("# changed\n")
    assert calls() == 4


def test_a_lock_left_by_a_killed_compiler_is_removed(clone: Path, tmp_path: Path) -> None:
    venv = environment_with_pip(tmp_path, "exit 0")
    lock = write_program(venv / "torch_extensions/some_op/lock", "")
    install = f"set -euo pipefail; source {clone}/launchers/common.sh; install quickstart"
    assert run(["bash", "-c", install], FLARE_DS_VENV=str(venv), DS_ACCELERATOR="").returncode == 0
    assert not lock.exists()


def test_quickstart_hands_its_options_to_the_sweep(clone: Path, tmp_path: Path) -> None:
    write_program(clone / "flare_ds/__main__.py", "import os, sys\nprint(*sys.argv[1:], sep='\\n')\n")
    model = write_program(tmp_path / "it's a model/config.json", "{}").parent
    (tmp_path / "data").mkdir()
    (tmp_path / "sweep.yaml").write_text("")
    options = ["--no-install", "--model", model.name, "--data", "data", "--out", "out", "--config", "sweep.yaml"]
    result = run([clone / "launchers/quickstart.sh", *options, "--languages", "no,es", "a.b=1"], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "sweep",
        str(tmp_path / "sweep.yaml"),
        f"base.model.base='{tmp_path}/it''s a model'",
        f"base.task.data_dir='{tmp_path}/data'",
        f"out='{tmp_path}/out'",
        "grid.languages=['no','es']",
        "a.b=1",
    ]
    assert "== sweep: 0 s" in result.stderr or "== sweep: 1 s" in result.stderr
    assert f"--logdir {tmp_path}/out" in result.stderr.splitlines()[-1]


def test_quickstart_fails_when_the_sweep_fails(clone: Path, tmp_path: Path) -> None:
    write_program(clone / "flare_ds/__main__.py", "raise SystemExit(3)\n")
    write_program(tmp_path / "model/config.json", "{}")
    options = ["--no-install", "--model", "model", "--data", ".", "--config", "model/config.json"]
    result = run([clone / "launchers/quickstart.sh", *options], cwd=tmp_path)
    assert result.returncode == 3
    assert "total" not in result.stderr


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


def test_a_slurm_task_waits_while_its_ranks_save_and_leaves_word(clone: Path, tmp_path: Path) -> None:
    """Its own status is 0: with another, Slurm would kill the other nodes' tasks, which may still be saving."""
    stop = "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), sys.exit(75)))\n"
    write_program(clone / "flare_ds/__main__.py", stop + "os.killpg(0, signal.SIGTERM)\ntime.sleep(60)\n")
    job = task_environment(tmp_path, node=0, nodes=1)
    assert run(["bash", "launchers/slurm_task.sh", "train"], cwd=clone, **job).returncode == 0
    assert Path(job["FLARE_DS_CONTINUED"]).exists()


@pytest.mark.parametrize("cdpath", [".", "/"])
def test_cdpath_does_not_lead_astray(cdpath: str, clone: Path) -> None:
    script = 'source launchers/common.sh; printf "[%s]" "$root"'
    assert run(["bash", "-c", script], cwd=clone, CDPATH=cdpath).stdout == f"[{clone}]"


def test_what_an_installation_compiled_is_found_again(clone: Path, tmp_path: Path) -> None:
    venv = environment_with_pip(tmp_path, "exit 0")
    write_program(venv / "bin/deepspeed", "#!/bin/sh\n")
    told = 'printf "%s %s" "$TORCH_EXTENSIONS_DIR" "${CXX:-unset}"'
    outputs = {
        run(
            ["bash", "-c", f"set -eu; source {clone}/launchers/common.sh; {verbs}; {told}"],
            FLARE_DS_VENV=str(venv),
            TORCH_EXTENSIONS_DIR="",
            DS_ACCELERATOR="",
        ).stdout
        for verbs in ("use_installed deepspeed", "check_compiler; install quickstart >/dev/null")
    }
    assert outputs == {f"{venv}/torch_extensions unset"}


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
