"""Two ranks that meet errors together, and then one of them alone: python -m tests.training.failures_worker."""

from collections.abc import Callable

from flare_ds.exceptions import FlareError, HostError, RankFailed
from flare_ds.runtime.joining import join_process_group
from flare_ds.runtime.process_group import barrier, rank
from flare_ds.runtime.rank_zero import agreed, on_rank_zero


def on_one() -> None:
    if rank() == 1:
        raise HostError("its GPU is full", fix="empty it")


def on_all() -> None:
    raise HostError(f"no GPU for {rank()}", fix="buy one")


def bug() -> None:
    {}["label"]


def full() -> None:
    raise OSError(28, "No space left on device")


WORKS: list[Callable[[], object]] = [
    lambda: agreed(on_one),
    lambda: agreed(on_all),
    lambda: on_rank_zero(bug),
    lambda: on_rank_zero(full),
    lambda: agreed(lambda: rank()),
]

if __name__ == "__main__":
    join_process_group()
    for work in WORKS:
        try:
            print("got", work(), flush=True)
        except (FlareError, RankFailed) as error:
            told = "traceback" if "Traceback" in getattr(error, "trace", "") else "no traceback"
            print("met", error.shared, told, str(error).replace("\n", " "), flush=True)
    if rank() == 1:
        raise HostError("no room", fix="make some")
    barrier()
