"""The ranks meet at rank 0's address; each says what it waits for, and gives up in time.

What comes of it is a store: a few short texts that every rank can write and read.
"""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread

import torch.distributed as dist

from flare_ds.exceptions import HostError
from flare_ds.runtime.launched import Place
from flare_ds.runtime.timeouts import setup_seconds

_FIRST_WORD_S, _NEXT_WORD_S, _LOOK_S = 5.0, 60.0, 0.1
_OTHER_PORT = "give this job another port: MASTER_PORT in the environment, or --master_port of the launcher"


def meet(place: Place) -> dist.Store:
    """Wait for all ranks of the job.

    Raises:
        HostError: the address cannot be reached or is taken, or not all came in time.
    """
    if place.world_size == 1:
        return dist.HashStore()
    arrivals = _Arrivals(place)
    with _telling(arrivals):
        try:
            return arrivals.wait()
        except RuntimeError as error:  # torch's network errors
            fix = f"check the address; if another job uses the port, {_OTHER_PORT}"
            said = str(error).partition("\n")[0]
            raise HostError(f"{arrivals.missed}: {said}", fix=fix) from error


class _Arrivals:
    """Who has come so far."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.here: int | None = None  # not known before rank 0 answers
        self.patience = setup_seconds()

    def wait(self) -> dist.Store:
        place, deadline = self.place, time.monotonic() + self.patience
        of_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # and outlives its ranks, who come again
        tcp = dist.TCPStore(
            place.address,
            int(place.port),
            place.world_size,
            place.rank == 0 and not of_torchrun,
            timeout=timedelta(seconds=self.patience),
            wait_for_workers=False,
        )
        store = dist.PrefixStore(f"flare_ds/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", tcp)
        if store.add(f"arrived/{place.rank}", 1) > 1 and not of_torchrun:
            problem = f"another rank {place.rank} has already joined at {place.address}:{place.port}"
            raise HostError(f"{problem}: it belongs to another job, or two processes have this rank", fix=_OTHER_PORT)
        self.here = store.add("arrived", 1)
        while self.here < place.world_size:
            if time.monotonic() > deadline:
                absent = place.world_size - self.here
                raise HostError(
                    f"{self.missed}: {absent} of {place.world_size} did not join within {self.patience:.0f} s",
                    fix=f"start all of them at once; to run alone, unset what the environment says: {place.told_by}",
                )
            time.sleep(_LOOK_S)
            self.here = store.add("arrived", 0)
        return store

    @property
    def missed(self) -> str:
        return f"the ranks did not meet at {self.place.address}:{self.place.port}"

    @property
    def told(self) -> str:
        place = self.place
        whom = "rank 0" if self.here is None else f"{place.world_size - self.here} of {place.world_size} ranks"
        where = f"{place.address}:{place.port}, for up to {self.patience:.0f} s"
        return f"waiting for {whom} at {where}; {place.told_by} come from the environment"


@contextmanager
def _telling(arrivals: _Arrivals) -> Iterator[None]:
    """While it takes long, say what is waited for: rank 0 for all, others as long as they have not found it."""
    over = Event()

    def tell() -> None:
        pause, mine = _FIRST_WORD_S, arrivals.place.rank
        while not over.wait(pause):
            if mine == 0 or arrivals.here is None:
                print(f"flare-ds: [rank {mine} on {socket.gethostname()}] {arrivals.told}", file=sys.stderr, flush=True)
            pause = _NEXT_WORD_S

    Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        over.set()
