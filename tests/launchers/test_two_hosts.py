"""The cluster launchers on a real Slurm and over real ssh: two hosts, on one machine."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.distributed import REPOSITORY, run_ranks
from tests.launchers.two_hosts import TwoHosts, missing, wait_until
from tests.toy import toy_settings, write_config

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing() or "two hosts can be made"),
    # One group, on one worker: the hosts are made once.
    pytest.mark.xdist_group("two_hosts"),
]

# Meets the other ranks and writes what this one saw. Told to `fail`, rank 1 does while rank 0 hangs. Told to `stop`, a
# job waits for SIGTERM, as training does between its steps; when it is started again it ends well.
PROBE = """
import json, os, signal, sys, time
import torch.distributed as dist

dist.init_process_group("gloo")
seen: list = [None] * dist.get_world_size()
mine = {name: os.environ.get(name) for name in ("DS_ACCELERATOR", "OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR", "SAID")}
mine |= {"host": os.uname().nodename, "cores": len(os.sched_getaffinity(0)), "python": sys.executable}
dist.all_gather_object(seen, mine)
arguments = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
if arguments[0] == "fail":
    time.sleep(600 * (dist.get_rank() == 0))
    sys.exit(3)
if arguments[0] == "stop" and "SLURM_RESTART_COUNT" not in os.environ:
    later = 15 * (dist.get_rank() == 0)  # longer than Slurm waits before it kills
    told = lambda *_: (signal.signal(signal.SIGTERM, signal.SIG_IGN), time.sleep(later), sys.exit(75))
    signal.signal(signal.SIGTERM, told)
    open(f"waiting{dist.get_rank()}", "w").close()
    time.sleep(600)
if dist.get_rank() == 0:
    with open("seen.json", "w") as file:
        json.dump({"arguments": arguments, "ranks": seen}, file)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    root = tmp_path_factory.mktemp("hosts")
    root.chmod(0o755)
    hosts = TwoHosts(root)
    try:
        hosts.up()
        yield hosts
    finally:
        hosts.down()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone in which flare_ds is the probe."""
    shutil.copytree(REPOSITORY / "launchers", tmp_path / "clone/launchers")
    program = tmp_path / "clone/flare_ds/__main__.py"
    program.parent.mkdir()
    program.write_text(PROBE)
    return tmp_path / "clone"


def sbatch(hosts: TwoHosts, *words: str | Path, wait: bool = True, clone: Path = REPOSITORY, log: Path) -> str:
    """Submit the launcher from the clone; returns the job's number, at its end if waited for."""
    command = ["sbatch", "--parsable", f"--chdir={clone}", f"--output={log}", *words]
    done = hosts.run("sh", "-c", f'cd "{clone}" && exec "$@"', "sh", *command)
    assert done.stdout, done.stderr
    job = done.stdout.strip()
    if wait:
        wait_until(lambda: state(hosts, job) in ("COMPLETED", "FAILED"), 120)
    return job


def state(hosts: TwoHosts, job: str) -> str:
    fields = hosts.run("scontrol", "show", "job", job).stdout.split()
    return next(field.removeprefix("JobState=") for field in fields if field.startswith("JobState="))


def seen(clone: Path, log: Path) -> dict:
    assert (clone / "seen.json").exists(), log.read_text()
    return json.loads((clone / "seen.json").read_text())


def test_slurm_gives_each_node_its_cores_and_environment(hosts: TwoHosts, clone: Path, tmp_path: Path) -> None:
    """With --export=NONE nothing comes along but what launchers/env.sh says, and all of a node's cores are used."""
    environment = f"export DS_ACCELERATOR=cpu PROCESSES_PER_NODE=1 SAID=here PATH={hosts.environment['PATH']}\n"
    (clone / "launchers/env.sh").write_text(environment)
    log = tmp_path / "log"
    sbatch(hosts, "--export=NONE", "--exclusive", "launchers/slurm.sbatch", "train", "a=b c", clone=clone, log=log)
    told = seen(clone, log)
    assert told["arguments"] == ["train", "a=b c"]
    assert sorted(rank["host"] for rank in told["ranks"]) == hosts.nodes
    for rank in told["ranks"]:
        assert (rank["SAID"], rank["DS_ACCELERATOR"]) == ("here", "cpu")
        assert rank["cores"] == int(rank["OMP_NUM_THREADS"]) == 2


def test_slurm_without_gpus_is_refused(hosts: TwoHosts, clone: Path, tmp_path: Path) -> None:
    path = hosts.environment["PATH"]
    (clone / "launchers/env.sh").write_text(f"export PATH={path}; unset DS_ACCELERATOR\n")
    job = sbatch(hosts, "launchers/slurm.sbatch", "train", clone=clone, log=tmp_path / "log")
    assert state(hosts, job) == "FAILED"
    assert "no GPU is visible on " in (tmp_path / "log").read_text()


def test_a_node_that_fails_ends_the_job(hosts: TwoHosts, clone: Path, tmp_path: Path) -> None:
    job = sbatch(hosts, "launchers/slurm.sbatch", "fail", clone=clone, log=tmp_path / "log")
    assert state(hosts, job) == "FAILED", (tmp_path / "log").read_text()


def continued(hosts: TwoHosts, job: str, log: Path) -> None:
    """Tell a running job that its time is nearly up, as Slurm does, and wait until it was continued to its end."""
    hosts.run("scancel", "--signal=TERM", job)
    wait_until(lambda: state(hosts, job) in ("PENDING", "COMPLETED", "FAILED"), 60)
    assert state(hosts, job) == "PENDING", log.read_text()
    # Slurm holds a job back for two minutes when it was queued again. Nobody else waits here, but its credentials count
    # whole seconds: one made in the second in which the nodes gave up the first start is taken for that one's.
    wait_until(hosts.idle, 60)
    hosts.run("scontrol", "update", f"JobId={job}", "StartTime=now+3")
    wait_until(lambda: state(hosts, job) in ("COMPLETED", "FAILED"), 150)
    assert state(hosts, job) == "COMPLETED", log.read_text()


def test_a_job_that_is_to_be_continued_is_queued_again(hosts: TwoHosts, clone: Path, tmp_path: Path) -> None:
    """Also where one node has ended long before another has saved the state."""
    log = tmp_path / "log"
    job = sbatch(hosts, "launchers/slurm.sbatch", "stop", wait=False, clone=clone, log=log)
    wait_until(lambda: len(list(clone.glob("waiting*"))) == 2, 60)
    continued(hosts, job, log)
    assert len(seen(clone, log)["ranks"]) == 2


def test_slurm_trains_as_one_host_does_and_continues_when_told_to_end(
    hosts: TwoHosts, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    if not pytestconfig.getoption("--full"):
        pytest.skip("two minutes of real training: with --full")
    steps = {"steps": 40, "validate_every": 20, "save_every": 1}
    config = str(write_config(toy_settings(tmp_path, name="slurm", **steps)))
    log = tmp_path / "log"
    job = sbatch(hosts, "launchers/slurm.sbatch", "train", config, wait=False, log=log)
    trained = tmp_path / "slurm/train_log.jsonl"
    wait_until(lambda: trained.exists() and trained.read_text().count("\n") >= 3, 90)
    continued(hosts, job, log)
    straight = str(write_config(toy_settings(tmp_path, name="straight", **steps)))
    run_ranks(["flare_ds", "train", straight], 2)
    one, two = (load_file(tmp_path / run / "adapter/adapter_model.safetensors") for run in ("straight", "slurm"))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=0, atol=1e-5), name


def test_a_sweep_is_a_job_on_one_node(hosts: TwoHosts, tmp_path: Path) -> None:
    """As docs/cluster.md writes it; submitted again it goes on, here with nothing left to do."""
    base = toy_settings(tmp_path, method="lora", steps=4, validate_every=4)
    grid = {"languages": ["pl"], "methods": ["zero_shot", "lora"], "seeds": [1]}
    for name in ("method", "run_dir"):
        del base[name]
    del base["task"]["target_language"]
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(yaml.safe_dump({"out": str(tmp_path / "out"), "base": base, "grid": grid}))
    command = f"./launchers/sweep_languages.sh {sweep} ranks=2"
    for log in (tmp_path / "log", tmp_path / "again"):
        job = sbatch(hosts, "--nodes=1", "--wrap", command, log=log)
        assert state(hosts, job) == "COMPLETED", log.read_text()
    assert "pl/lora-seed1" in log.read_text() and "skipped (finished)" in log.read_text()
    assert (tmp_path / "out/pl/lora-seed1/metrics.json").exists()


@pytest.mark.parametrize("remote", [[0, 1], [1]])
def test_hostfile_over_ssh(hosts: TwoHosts, clone: Path, tmp_path: Path, remote: list[int]) -> None:
    """Also with a single host, which is not this machine."""
    names = [hosts.nodes[number] for number in remote]
    (clone / "hosts").write_text("".join(f"{name} slots=1\n" for name in names))
    (clone / ".deepspeed_env").write_text("SAID=two words\n")
    words = ["train", "a=b c", "x=$HOME;y", 'z=\'$HOME "q"']
    done = hosts.run("sh", "-c", f'cd {clone} && exec "$@"', "sh", "launchers/hostfile.sh", "hosts", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((clone / "seen.json").read_text())
    assert told["arguments"] == words
    assert sorted(rank["host"] for rank in told["ranks"]) == names
    for rank in told["ranks"]:
        assert (rank["SAID"], rank["DS_ACCELERATOR"], rank["OMP_NUM_THREADS"]) == ("two words", "cpu", "2")
        assert rank["python"] == sys.executable
