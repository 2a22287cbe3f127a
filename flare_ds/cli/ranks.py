"""`--ranks N|all`: a verb's ranks on this host, started by this command, and ended with it.

DeepSpeed's launcher would import torch and DeepSpeed itself before it starts a rank, take the first GPUs whatever
CUDA_VISIBLE_DEVICES says, read a hostfile, and give the ranks 30 s to save their state when it is told to end.

The ranks are a process group, so that what ends this process, even kill -9, ends them and all that they started. What
this process is sent they are sent.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from flare_ds.cli.arguments import ALL, split_off_ranks
from flare_ds.cli.importing import check_bases
from flare_ds.exceptions import ConfigError, HostError
from flare_ds.failures import say
from flare_ds.host import gpu_names, gpu_variable, threads, visible_gpus
from flare_ds.processes import end_lingering, free_port, guarded, search_path
from flare_ds.runtime.launched import Place, place_of

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_LOOK_S = 0.1
_PATIENCE_S = {0: 5.0, signal.SIGTERM: 30.0, signal.SIGKILL: 5.0}
"""How long the other ranks have to end when one has failed: told by that one, asked by us, and made to."""


@dataclass(frozen=True)
class Devices:
    """What the ranks run on.

    Attributes:
        names: of each rank's device, as CUDA_VISIBLE_DEVICES says them; on the CPU mere numbers.
        environment: what the ranks get beside ours.
        told: what the user is told.
    """

    names: tuple[str, ...]
    environment: Mapping[str, str]
    told: str


def run_on_ranks(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Run a verb, parsed and as it was typed, on ranks of this host; what its settings say wrong is told before.

    Returns:
        The exit status of the first rank that did not end well, else 0; where a signal ended it 128 and its number.

    Raises:
        ConfigError: a setting is wrong, or there are fewer GPUs than ranks.
        HostError: a launcher has started this process already, or GPUs are asked for and none is visible.
    """
    if told := place_of(os.environ).told_by:
        problem = f"--ranks {options.ranks}, but a launcher has started this process: {told} in the environment"
        raise HostError(problem, fix="leave --ranks out, or unset these variables")
    if vars(options).get("interactive"):
        problem = f"--interactive with --ranks {options.ranks}: questions are for one process"
        raise ConfigError(problem, fix="leave --ranks out, or use --file")
    if "read_config" in options:
        read = options.read_config(options)
        check_bases(config.model for config in (read if isinstance(read, list) else [read]))
    devices = devices_for(options.ranks, os.environ, visible_gpus)
    say(devices.told)
    return _launch(split_off_ranks(words)[1], devices)


def devices_for(wanted: int | str, environ: Mapping[str, str], visible_gpus: Callable[[], int]) -> Devices:
    """Choose what ranks run on: GPUs where some are visible, unless DS_ACCELERATOR says cpu.

    Args:
        wanted: how many ranks, or `all`.
        environ: of this process.
        visible_gpus: counts them; called only where it matters.

    Raises:
        ConfigError: there are fewer GPUs than ranks, or `all` is asked for of CPUs.
        HostError: DS_ACCELERATOR says that GPUs are meant, and none is visible.
    """
    kind = environ.get("DS_ACCELERATOR")
    if kind not in (None, "cpu", "cuda"):
        problem = f"--ranks counts GPUs of CUDA and ROCm, but DS_ACCELERATOR={kind}"
        raise ConfigError(problem, fix="start the ranks yourself: deepspeed --num_accelerators N --module flare_ds ...")
    visible = 0 if kind == "cpu" else visible_gpus()
    if visible:
        return _gpus(wanted, environ, visible)
    if kind == "cuda":
        fix = "request GPUs, or set DS_ACCELERATOR=cpu to use the CPU"
        raise HostError("DS_ACCELERATOR=cuda, but no GPU is visible to torch here", fix=fix)
    return _cpu(wanted, environ, "" if kind == "cpu" else "no GPU is visible: ")


def _gpus(wanted: int | str, environ: Mapping[str, str], visible: int) -> Devices:
    number = visible if wanted == ALL else int(wanted)
    if number > visible:
        problem = f"--ranks {number}, but {visible} GPUs are visible here"
        raise ConfigError(problem, fix=f"use --ranks {ALL}, or set DS_ACCELERATOR=cpu to use the CPU")
    names = gpu_names(environ, visible)[:number]
    own = {"DS_ACCELERATOR": "cuda", gpu_variable(environ): ",".join(names), **threads(number, environ)}
    return Devices(tuple(names), own, f"using {number} of {visible} GPUs ({', '.join(names)})")


def _cpu(wanted: int | str, environ: Mapping[str, str], why: str) -> Devices:
    if wanted == ALL:
        problem = f"{why}--ranks {ALL} starts one rank per GPU, and on the CPU their number has to be given"
        raise ConfigError(problem, fix="give as many as fit into memory, e.g. --ranks 2")
    number, given = int(wanted), threads(int(wanted), environ)
    told = f"{why}{number} ranks on the CPU, OMP_NUM_THREADS={given['OMP_NUM_THREADS']} each"
    return Devices(tuple(map(str, range(number))), {"DS_ACCELERATOR": "cpu", **given}, told)


def _launch(words: Sequence[str], devices: Devices) -> int:
    """Start the ranks and wait for their end; the status of the first that did not end well, else 0."""
    ranks: list[subprocess.Popen] = []
    with _signals_passed_on(ranks):
        first, *others = _places(len(devices.names))
        ranks.append(_start(words, {**devices.environment, **first}, ranks))
        try:
            with guarded(ranks[0]):
                for place in others:
                    ranks.append(_start(words, {**devices.environment, **place}, ranks))
                code = _first_failure(ranks)
        except OSError as error:
            problem = f"cannot start all of {len(devices.names)} ranks: {error.strerror}"
            raise HostError(problem, fix="raise the limit on processes (ulimit -u), or use fewer --ranks") from error
        finally:
            _end_together(ranks)
    if code >= 0:
        return code
    if -code not in _SIGNALS:
        memory = "; if nobody sent it, the kernel did: out of memory" if -code == signal.SIGKILL else ""
        say(f"a rank was ended by signal {-code} ({signal.strsignal(-code)}){memory}")
    return 128 - code


def _places(number: int) -> Iterator[dict[str, str]]:
    """What the environment tells each of so many ranks of this host."""
    port = free_port()
    for rank in range(number):
        place = Place(rank, number, rank, "127.0.0.1", port, "--ranks")
        yield {**place.environment, "LOCAL_SIZE": str(number)}


def _start(
    words: Sequence[str], environment: Mapping[str, str], before: Sequence[subprocess.Popen]
) -> subprocess.Popen:
    """Start a rank, in the process group of those before it; the first begins one."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "flare_ds", *words],
        env={**os.environ, "PATH": search_path(), **environment},
        stdin=subprocess.DEVNULL,
        process_group=before[0].pid if before else 0,
    )


def _first_failure(ranks: Sequence[subprocess.Popen]) -> int:
    """Wait for all ranks, or for one that does not end well, whose status is returned."""
    while True:
        codes = [rank.poll() for rank in ranks]
        if failed := [code for code in codes if code]:
            return failed[0]
        if None not in codes:
            return 0
        time.sleep(_LOOK_S)


def _end_together(ranks: Sequence[subprocess.Popen]) -> None:
    """Let the ranks that are left end; see `_PATIENCE_S`."""
    for number, seconds in _PATIENCE_S.items():
        deadline = time.monotonic() + seconds
        for rank in ranks:
            rank.send_signal(number)
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
    end_lingering(ranks[0])


@contextmanager
def _signals_passed_on(ranks: Sequence[subprocess.Popen]) -> Iterator[None]:
    """Let the ranks that there are have what this process is sent."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            rank.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
