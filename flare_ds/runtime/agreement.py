"""All ranks of a job agree on what they compute with, before they form a group and load anything.

A host whose driver is ill would join over another backend, and everyone wait; one with another version of a package,
or with other code of this one, would compute something else, and nobody notice.
"""

import json
import socket

import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from flare_ds.exceptions import HostError, on_every_rank
from flare_ds.versions import versions

_MAY_DIFFER = ("python", "numpy")
_KEY = "flare_ds/computes_with"


def computes_with() -> dict[str, str]:
    """This rank's accelerator, backend, package versions and code, by name."""
    accelerator = get_accelerator()
    found = {"accelerator": accelerator.device_name(), "backend": accelerator.communication_backend_name()}
    return found | {name: version for name, version in versions().items() if name not in _MAY_DIFFER}


def check_agreement(store: dist.Store, rank: int, world_size: int) -> None:
    """Refuse a job whose ranks compute with different things; a collective, before there is a group to be formed.

    Raises:
        HostError: they do, on every rank; it names every value, and the hosts that have it.
    """
    store.set(f"{_KEY}/{rank}", json.dumps([socket.gethostname(), computes_with()]))
    compare([json.loads(store.get(f"{_KEY}/{other}")) for other in range(world_size)])


def compare(everyone: list[tuple[str, dict[str, str]]]) -> None:
    """Compare what the ranks told, in rank order: each its host, and what it computes with."""
    problems = []
    for name in dict.fromkeys(name for _, found in everyone for name in found):
        hosts: dict[str, list[str]] = {}
        for rank, (host, found) in enumerate(everyone):  # another version of this package may tell less
            hosts.setdefault(found.get(name, "not told"), []).append(f"{host} (rank {rank})")
        if len(hosts) > 1:
            what = "the code of flare_ds" if name == "code" else name
            problems.append(f"{what} is " + ", but ".join(f"{value} on {', '.join(at)}" for value, at in hosts.items()))
    if problems:
        fix = (
            "give every host the same environment and the same checkout of flare_ds (on NFS an edit takes a minute); "
            "run nvidia-smi on a host whose GPUs are not seen"
        )
        raise on_every_rank(HostError(f"the ranks differ in software or device: {'; '.join(problems)}", fix=fix))
