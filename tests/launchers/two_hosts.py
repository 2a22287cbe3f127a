"""Two hosts on this machine, with a real Slurm and a real OpenSSH.

Each host is a network namespace with its own name and address, an sshd and a slurmd; one slurmctld serves both. They
share the file system and the cores. Names, addresses and ports are drawn anew each time, so several may stand side by
side; everything is taken away at the end. It takes root, and some programs.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.distributed import REPOSITORY

PROGRAMS = ["ip", "nsenter", "unshare", "munged", "slurmctld", "slurmd", "sbatch", "sshd", "ssh", "ssh-keygen", "pdsh"]
HOSTS_FILE = Path("/etc/hosts")
SSHD = "/usr/sbin/sshd"

SLURM_CONF = """
ClusterName={name}
SlurmctldHost={name}-controller({net}.254)
SlurmctldPort={port}
SlurmUser=root
AuthInfo=socket={root}/munge.socket
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2
ReturnToService=2
MpiDefault=none
KillWait=10
NodeName={name}-[1-2] CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""
SSHD_CONFIG = """
HostKey {root}/host_key
AuthorizedKeysFile {root}/key.pub
StrictModes no
UsePAM no
PidFile none
"""
SSH_CONFIG = """
IdentityFile {root}/key
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
"""


def missing() -> str:
    """What this machine lacks for two hosts, in words; empty if nothing."""
    if os.geteuid() != 0:
        return "two hosts take root"
    lacking = [program for program in PROGRAMS if not shutil.which(program, path=search_path())]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


def search_path() -> str:
    """PATH with the directory of system daemons."""
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"


class TwoHosts:
    """The hosts `nodes`, below a directory of their own; `environment` is what a user of them has."""

    def __init__(self, root: Path) -> None:
        """Draw the names; `up` makes the hosts."""
        number = random.SystemRandom().randrange(1, 250)
        self.root = root
        self.name = f"h{os.getpid()}x{number}"
        self.net = f"10.78.{number}"
        self.nodes = [f"{self.name}-1", f"{self.name}-2"]
        self.daemons: list[subprocess.Popen] = []
        self.words = {"root": root, "name": self.name, "net": self.net, "port": 21000 + number}
        self.environment = {
            "HOME": os.environ["HOME"],
            "PATH": f"{root}/bin:{search_path()}",
            "SLURM_CONF": str(root / "slurm.conf"),
            "DS_ACCELERATOR": "cpu",
            "PROCESSES_PER_NODE": "1",
        }
        self.environment |= {name: os.environ[name] for name in ("TORCH_EXTENSIONS_DIR",) if name in os.environ}

    def up(self) -> None:
        """Make the hosts and wait until Slurm calls both idle."""
        self._network()
        self._ssh()
        self._slurm()
        wait_until(self.idle, 40)

    def idle(self) -> bool:
        """Whether no job is on either host, nor one that is ending."""
        return self.run("sinfo", "-h", "-o", "%T %D").stdout.split() == ["idle", "2"]

    def down(self) -> None:
        """End what was started and take the hosts away."""
        if (self.root / "slurm.conf").exists():
            self.run("scancel", "--user=root", "--full", "--signal=KILL")
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for number in (1, 2):
            subprocess.run(["ip", "netns", "del", self.nodes[number - 1]], check=False)
        subprocess.run(["ip", "link", "del", self._bridge()], check=False)
        lines = HOSTS_FILE.read_text().splitlines(keepends=True)
        HOSTS_FILE.write_text("".join(line for line in lines if self.name not in line))

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command as their user does, from the clone."""
        where = {"cwd": REPOSITORY, "env": self.environment | environment}
        return subprocess.run(command, **where, capture_output=True, text=True, timeout=200, check=False)

    def _bridge(self) -> str:
        return f"br{self.words['port']}"

    def _on(self, node: str, *command: str | Path) -> list[str | Path]:
        """The command, on a host: in its network and with its name."""
        network = ["nsenter", f"--net=/var/run/netns/{node}"] if node in self.nodes else []
        return [*network, "unshare", "--uts", "sh", "-c", f'hostname {node} && exec "$@"', "sh", *command]

    def _start(self, node: str, log: str, *command: str | Path) -> None:
        out = (self.root / f"{log}.log").open("w")
        daemon = subprocess.Popen(
            self._on(node, *command), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.environment
        )
        self.daemons.append(daemon)

    def _network(self) -> None:
        bridge = self._bridge()
        steps = [f"link add {bridge} type bridge", f"addr add {self.net}.254/24 dev {bridge}", f"link set {bridge} up"]
        names = [f"{self.net}.254 {self.name}-controller"]
        for number, node in enumerate(self.nodes, 1):
            link = f"v{self.words['port']}x{number}"
            steps += [
                f"netns add {node}",
                f"link add {link} type veth peer name eth0 netns {node}",
                f"link set {link} master {bridge} up",
                f"-n {node} addr add {self.net}.{number}/24 dev eth0",
                f"-n {node} link set eth0 up",
                f"-n {node} link set lo up",
            ]
            names.append(f"{self.net}.{number} {node}")
        for step in steps:
            subprocess.run(["ip", *step.split()], check=True, capture_output=True)
        with HOSTS_FILE.open("a") as file:
            file.write("".join(f"{name}\n" for name in names))

    def _ssh(self) -> None:
        for key in ("key", "host_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.root / key]
            subprocess.run(command, check=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        self._write("sshd_config", SSHD_CONFIG)
        self._write("ssh_config", SSH_CONFIG)
        ssh = self._write("bin/ssh", '#!/bin/sh\nexec /usr/bin/ssh -F {root}/ssh_config "$@"\n')
        ssh.chmod(0o755)
        for node in self.nodes:
            self._start(node, f"sshd.{node}", SSHD, "-D", "-e", "-f", self.root / "sshd_config")

    def _slurm(self) -> None:
        (self.root / "state").mkdir()
        self._write("slurm.conf", SLURM_CONF)
        self._write("cgroup.conf", "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        key = self._write("munge.key", "not a secret: " + "x" * 64)
        key.chmod(0o600)
        names = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        files = [f"--{option}={self.root}/{name}" for option, name in names.items()]
        controller = f"{self.name}-controller"
        self._start(controller, "munged", "munged", "--foreground", "--force", "--num-threads=2", *files)
        wait_until((self.root / "munge.socket").exists, 10)
        self._start(controller, "slurmctld", "slurmctld", "-D", "-f", self.root / "slurm.conf")
        for node in self.nodes:
            (self.root / f"spool.{node}").mkdir()
            self._start(node, f"slurmd.{node}", "slurmd", "-D", "-N", node, "-f", self.root / "slurm.conf")

    def _write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.format(**self.words), encoding="utf-8")
        return path


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not come true.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not true after {seconds} s: {condition}")
        time.sleep(0.2)
