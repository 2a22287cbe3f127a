"""Forming the group of the ranks that a launcher started, or a group of one: what DeepSpeed's engine runs in.

Only `flare_ds.runtime.joining` imports this module, and only when ranks are to join.
"""

import atexit
import faulthandler
import os
import shutil
import socket
import sys
from contextlib import ExitStack, redirect_stdout
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.comm.torch import build_shm_op
from torch.utils.cpp_extension import get_default_build_root

from flare_ds.exceptions import HostError, on_every_rank
from flare_ds.failures import end_uncaught, joined
from flare_ds.files import disk_errors
from flare_ds.locks import one_at_a_time
from flare_ds.models.attention_kernels import choose_attention_kernels
from flare_ds.runtime.agreement import check_agreement
from flare_ds.runtime.board import Board
from flare_ds.runtime.job import Job
from flare_ds.runtime.launched import Place
from flare_ds.runtime.meeting import meet
from flare_ds.runtime.process_group import leave, met, ranks_named, talk_over, work_on
from flare_ds.runtime.timeouts import collective_timeout, setup_seconds
from flare_ds.runtime.watchdog import watch

_BUFFER_BYTES = 70_000_000
"""Of shared memory for each rank of a host: what DeepSpeed's CPU communication sends through."""


def join(place: Place) -> None:
    """Join, or form a group of one; see `join_process_group`."""
    choose_attention_kernels()
    os.environ.update(place.environment)
    if get_accelerator().device_name() == "cpu":
        _load_cpu_communication()
        _check_shared_memory()
    store = meet(place)
    if place.world_size > 1:
        _look_after_one_another(place, store)
    _check_device(place)
    try:
        _form(place, store)
    except (RuntimeError, ValueError) as error:
        fix = "check that every host reaches every other one (firewall; NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)"
        problem = f"the ranks met at {place.address}:{place.port}, but cannot form a process group: {error}"
        raise HostError(problem, fix=fix) from error
    get_accelerator().set_device(place.local_rank)  # before anything is loaded onto a GPU
    work_on(torch.device(get_accelerator().current_device_name()))
    if get_accelerator().device_name() == "cpu":
        _unlink_shared_memory()
    atexit.register(leave)


def _look_after_one_another(place: Place, store: dist.Store) -> None:
    """From now on the failure of one rank is that of all."""
    store.set(f"place/{place.rank}", f"{place.local_rank} {socket.gethostname()}")
    places = [store.get(f"place/{rank}").decode() for rank in range(place.world_size)]
    job = Job(Board(store, place.rank, place.world_size), [told.partition(" ")[2] for told in places])
    job.start()
    met(job)
    joined(job)
    watch(job)
    faulthandler.enable()  # a crash in native code shows where
    check_agreement(store, place.rank, place.world_size)
    _check_places(places)


def _form(place: Place, store: dist.Store) -> None:
    """The process groups."""
    backend, timeout = get_accelerator().communication_backend_name(), collective_timeout()
    alone = place.world_size == 1
    bound = get_accelerator().device_name() == "cuda" and not alone  # as deepspeed.init_distributed does
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("group", store),
        rank=place.rank,
        world_size=place.world_size,
        timeout=timeout,
        device_id=torch.device("cuda", place.local_rank) if bound else None,
    )
    deepspeed.init_distributed(backend, timeout=timeout, verbose=False)
    if not alone:
        talk_over(dist.new_group(backend="gloo", timeout=timedelta(seconds=setup_seconds())))
        end_uncaught()


def _check_places(places: list[str]) -> None:
    """Refuse two ranks on one GPU, which NCCL cannot do with: nobody has told them apart."""
    twice = [number for number, mine in enumerate(places) if places.count(mine) > 1]
    if twice and get_accelerator().device_name() != "cpu":
        number = places[twice[0]].partition(" ")[0]
        problem = f"{ranks_named(twice)} have LOCAL_RANK={number}, so they would share one device"
        fix = "start one process a host, or set LOCAL_RANK to each process's number on its host"
        raise on_every_rank(HostError(problem, fix=fix))


def _check_device(place: Place) -> None:
    """Refuse a rank that has no GPU of its number: torch would name an ordinal, and only after a while."""
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu" or place.local_rank < (seen := accelerator.device_count()):
        return
    raise HostError(
        f"LOCAL_RANK={place.local_rank}, but this process sees {seen} GPU{'s' if seen > 1 else ''}, numbered from 0",
        fix="start no more ranks on a host than it has GPUs, and let each see all of them: with Slurm "
        "--gpus-per-node=N, not --gpus-per-task; DS_ACCELERATOR=cpu says that CPUs are meant",
    )


def _check_shared_memory() -> None:
    """Refuse a host whose shared memory is too small for DeepSpeed's CPU communication, which would die of a signal.

    Raises:
        HostError: naming how a container is given more.
    """
    needed = _BUFFER_BYTES * int(os.environ.get("LOCAL_SIZE", 0))  # without it DeepSpeed uses none
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    if free < needed:
        problem = f"the ranks of this host need {needed / 1e6:.0f} MB in /dev/shm, which has {free / 1e6:.0f} MB free"
        fix = "give a container more (docker run --shm-size=1g; Kubernetes: an emptyDir in memory), or take one rank"
        raise HostError(problem, fix=fix)


def _unlink_shared_memory() -> None:
    """Take the name of this rank's communication buffer away: the memory then goes when the last rank of the host ends.

    DeepSpeed never does, so every run on a CPU would leave 69 MB a rank in memory until the host restarts.
    """
    dist.barrier()  # every rank has mapped the others' buffers
    name = f"{os.getuid()}_{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_{dist.get_rank()}"
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{name}").unlink(missing_ok=True)


def _load_cpu_communication() -> None:
    """Load (at first use: compile) DeepSpeed's CPU communication, one process of this host at a time.

    torch guards the compilation by a file that a killed process leaves behind, and the next one would wait for it
    without end. Whoever holds our lock, which is taken over from a dead process, knows that such a file is stale.

    Raises:
        HostError: it does not compile, or there is no place for it.
    """
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    elsewhere = "set TORCH_EXTENSIONS_DIR to a directory you may write to (else HOME decides)"
    with ExitStack() as held:
        with disk_errors(root, elsewhere=elsewhere):
            root.mkdir(parents=True, exist_ok=True)
            held.enter_context(one_at_a_time(root / "flare_ds", lambda: None))
        for stale in root.glob("**/deepspeed_shm_comm/lock"):
            stale.unlink()
        try:
            with redirect_stdout(sys.stderr):  # DeepSpeed says that it has built it, where answers are printed
                build_shm_op()
        except (RuntimeError, OSError) as error:
            raise HostError(
                f"DeepSpeed's CPU communication does not compile: {error}",
                fix="install a C++ compiler (g++ or clang++, or set CXX) and ninja: pip install ninja",
            ) from error
