"""The process group: joining the ranks a launcher started, or being the only one."""

import os
from datetime import timedelta

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from flare_ds.exceptions import HostError
from flare_ds.processes import free_port

TIMEOUT = timedelta(minutes=60)


def join_process_group() -> None:
    """Join the ranks started by `deepspeed`, `torchrun` or `srun`; started by hand, form a group of one.

    Raises:
        HostError: the group does not form.
    """
    if dist.is_initialized():
        return
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    try:
        deepspeed.init_distributed(get_accelerator().communication_backend_name(), timeout=TIMEOUT, verbose=False)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        fix = "check the address; if another run of this machine uses the port, pass the launcher another --master_port"
        raise HostError(f"the ranks did not meet at {address}: {error}", fix=fix) from error


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
