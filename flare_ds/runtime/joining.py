"""Joining the ranks that a launcher started.

Only that needs DeepSpeed, which is imported then: a whole model in a process alone needs neither.
"""

import os

import torch.distributed as dist

from flare_ds.runtime.launched import place_of
from flare_ds.runtime.timeouts import check_timeouts


def join_process_group() -> None:
    """Join the ranks started by a launcher, `srun` or `mpirun`; started by hand, form a group of one.

    Raises:
        HostError: the environment contradicts itself, the group does not form, two ranks would share a device, or the
            ranks compute with different things.
        ConfigError: see `flare_ds.runtime.timeouts`.
    """
    if not dist.is_initialized():
        check_timeouts()
        from flare_ds.runtime.forming import join

        join(place_of(os.environ))


def join_if_launched() -> None:
    """Join the other ranks, if a launcher has started several; a process alone joins nothing."""
    if place_of(os.environ).world_size > 1:
        join_process_group()
