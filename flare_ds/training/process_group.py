"""The process group: joining the ranks a launcher started, or being the only one."""

import atexit
import fcntl
import os
import time
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.comm.torch import build_shm_op
from torch.utils.cpp_extension import get_default_build_root

from flare_ds.exceptions import HostError
from flare_ds.processes import free_port
from flare_ds.training.agreement import check_agreement

TIMEOUT = timedelta(minutes=60)


def join_process_group() -> None:
    """Join the ranks started by `deepspeed`, `torchrun` or `srun`; started by hand, form a group of one.

    Raises:
        HostError: the group does not form, or its ranks compute with different things.
    """
    if dist.is_initialized():
        return
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    if get_accelerator().device_name() == "cpu":
        _load_cpu_communication()
    try:
        met = next(dist.rendezvous("env://", timeout=TIMEOUT))  # kept: rank 0 would close its port between the two
        check_agreement(*met)
        deepspeed.init_distributed(get_accelerator().communication_backend_name(), timeout=TIMEOUT, verbose=False)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        fix = "check the address; if another run of this machine uses the port, pass the launcher another --master_port"
        raise HostError(f"the ranks did not meet at {address}: {error}", fix=fix) from error
    get_accelerator().set_device(int(os.environ.get("LOCAL_RANK", "0")))  # before anything is loaded onto a GPU
    if get_accelerator().device_name() == "cpu":
        _unlink_shared_memory()
    atexit.register(_leave_process_group)


def _unlink_shared_memory() -> None:
    """Take the name of this rank's communication buffer away: the memory then goes when the last rank of the host ends.

    DeepSpeed never does, so every run on a CPU would leave 69 MB a rank in memory until the host restarts.
    """
    dist.barrier()  # every rank has mapped the others' buffers
    name = f"{os.getuid()}_{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_{dist.get_rank()}"
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{name}").unlink(missing_ok=True)


def _leave_process_group() -> None:
    """Let Gloo's threads finish before the interpreter does, or a rank that is done may still end in an abort.

    A thread may be about to drop the tensors of the last collective, for which it needs the interpreter; DeepSpeed
    keeps the group, so destroying it does not end the threads (pytorch#190489). A thread runs while this one sleeps.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(0.2)


def _load_cpu_communication() -> None:
    """Load (at first use: compile) DeepSpeed's CPU communication, one process of this host at a time.

    torch guards the compilation by a file that a killed process leaves behind, and the next one would wait for it
    without end. Whoever holds our lock, which dies with its process, knows that such a file is stale.

    Raises:
        HostError: it does not compile.
    """
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    root.mkdir(parents=True, exist_ok=True)
    with (root / "flare_ds.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in root.glob("**/deepspeed_shm_comm/lock"):
            stale.unlink()
        try:
            build_shm_op()
        except (RuntimeError, OSError) as error:
            raise HostError(
                f"DeepSpeed's CPU communication does not compile: {error}",
                fix="install a C++ compiler (g++ or clang++, or set CXX) and ninja: pip install ninja",
            ) from error


def device() -> torch.device:
    """The device of this rank."""
    return torch.device(get_accelerator().current_device_name())


def rank() -> int:
    """This process's number among all."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather_objects(mine: object) -> list:
    """What every rank holds, on every rank, in rank order; small Python objects only."""
    if world_size() == 1:
        return [mine]
    everyone: list = [None] * world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        dist.barrier()
