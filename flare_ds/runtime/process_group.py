"""The ranks that work together, as each of them sees it: who they are, and what they tell one another.

A process that has joined no group (see `flare_ds.runtime.joining`) works alone, as rank 0 of 1; and so does one, within
`alone`, that has work of its own, whoever formed the group.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from flare_ds.exceptions import HostError
from flare_ds.host import visible_gpus
from flare_ds.runtime.job import Job
from flare_ds.runtime.timeouts import setup_seconds

_job: Job | None = None
_side: dist.ProcessGroup | None = None
"""Over Gloo, with the patience of a set-up: small objects, and waits for what one rank does alone."""
_device: torch.device | None = None
_alone: ContextVar[bool] = ContextVar("alone", default=False)


def leave() -> None:
    """Let Gloo's threads finish before the interpreter does, or a rank that is done may still end in an abort.

    A thread may be about to drop the tensors of the last collective, for which it needs the interpreter; DeepSpeed
    keeps the group, so destroying it does not end the threads (pytorch#190489). A thread runs while this one sleeps.
    """
    if dist.is_initialized():
        if _job is not None:
            _job.finish()
        dist.destroy_process_group()
        time.sleep(0.2)


def finish() -> None:
    """Wait until every rank has done its work, so that none ends well where another fails; a collective."""
    barrier()
    if _job is not None:
        _job.finish()


def met(job: Job) -> None:
    """Several ranks have met, and look after one another."""
    global _job
    _job = job


def talk_over(side: dist.ProcessGroup) -> None:
    """Use this group for small objects, and for long waits."""
    global _side
    _side = side


def work_on(device: torch.device) -> None:
    """This rank has a device of its own."""
    global _device
    _device = device


def device() -> torch.device:
    """The device of this rank; of a process alone the current GPU, unless there is none or DS_ACCELERATOR says cpu."""
    if _device is not None:
        return _device
    if visible_gpus():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@contextmanager
def alone() -> Iterator[None]:
    """Work alone within this, in this thread: what is asked and answered here is no other rank's."""
    before = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(before)


def is_alone() -> bool:
    """Whether this thread is within `alone`."""
    return _alone.get()


def rank() -> int:
    """This process's number among all."""
    return dist.get_rank() if dist.is_initialized() and not is_alone() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() and not is_alone() else 1


def hosts() -> list[str]:
    """The host of each rank."""
    return ["this host"] if _job is None or is_alone() else _job.hosts


def ranks_named(ranks: list[int]) -> str:
    """Some ranks and their hosts, for a message; nothing where there is but one rank."""
    return "" if _job is None or is_alone() else _job.named(ranks)


def gather_objects(mine: object) -> list:
    """What every rank holds, on every rank, in rank order; small Python objects only.

    Raises:
        HostError: another rank has not come in time.
    """
    if world_size() == 1:
        return [mine]
    everyone: list = [None] * world_size()
    with _patience("not all ranks came within"):
        dist.all_gather_object(everyone, mine, group=_side)
    return everyone


def first_object(mine: object) -> Any:
    """What rank 0 holds, on every rank; a small Python object.

    Raises:
        HostError: what rank 0 does before takes too long.
    """
    if world_size() == 1:
        return mine
    holder = [mine]
    with _patience("the other ranks have waited for rank 0 for"):
        dist.broadcast_object_list(holder, src=0, group=_side)
    return holder[0]


def added_up(mine: Tensor) -> Tensor:
    """The sum of every rank's tensor, in its place; nobody waits for it yet."""
    if world_size() > 1:
        dist.all_reduce(mine)
    return mine


def barrier() -> None:
    """Wait for every rank, as long as a set-up may take.

    Raises:
        HostError: another rank has not come in time.
    """
    if world_size() > 1:
        with _patience("not all ranks came within"):
            dist.barrier(group=_side)


@contextmanager
def _patience(what: str) -> Iterator[None]:
    """Say what was waited for, and how to wait longer, where Gloo gives up in words of its own."""
    try:
        yield
    except RuntimeError as error:
        if not re.search("timed out", str(error), re.IGNORECASE):
            raise
        fix = (
            "run the slow part first in one process (`flare-ds prepare`, `flare-ds merge`), or allow more time: "
            "FLARE_DS_SETUP_SECONDS=N in the environment of every rank"
        )
        raise HostError(f"{what} {setup_seconds():.0f} s", fix=fix) from error
