"""`flare_ds` on one rank, which suffers what it is told to.

Run as `python -m tests.training.chaos_worker FAULT AT VERB CONFIG`.

A fault comes within a forward of step AT, of rank $CHAOS_RANK (or of all), or while rank 0 writes the state after it.
"""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from flare_ds import files
from flare_ds.__main__ import main
from flare_ds.runtime.engine import Engine
from flare_ds.training import cell, loop, state

faults: dict[str, Callable[[], object]] = {}


def fault(strike: Callable[[], object]) -> Callable[[], object]:
    faults[strike.__name__] = strike
    return strike


@fault
def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@fault
def terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@fault
def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@fault
def segfault() -> None:
    ctypes.string_at(0)


@fault
def aborted() -> None:
    os.abort()


@fault
def exception() -> None:
    raise KeyError("chaos")


@fault
def out_of_memory() -> None:
    torch.empty(1 << 60)


@fault
def holds_the_interpreter() -> None:
    ctypes.PyDLL(None).sleep(600)


@fault
def full_disk_while_saving() -> None:
    """What the kernel says of a full disk."""
    with open("/dev/full", "wb", buffering=0) as full:
        full.write(b"0")


@fault
def cut_short_while_saving() -> None:
    """The kernel writes as much as is allowed, and then no more."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


@fault
def killed_while_saving() -> None:
    """The temporary file is there, and not yet renamed."""
    real = files.sync

    def sync(path: object) -> None:
        if "state.safetensors" in str(path):
            killed()
        real(path)  # type: ignore[arg-type]

    files.sync = sync


def strike_at(strike: Callable[[], object], step: int) -> None:
    take_step, save_state, save_file = loop.take_step, cell.save_state, state.save_file
    saving = strike.__name__.endswith("_saving")

    def stepped(engine: Engine, cells: Sequence[cell.Cell], *arguments: Any) -> Any:
        accumulate = engine.accumulate

        def struck(*arguments: Any, **options: Any) -> torch.Tensor:
            losses = accumulate(*arguments, **options)
            strike()
            return losses

        if not saving and cells[0].progress.step + 1 == step:
            engine.accumulate = struck  # type: ignore[method-assign]
        found = take_step(engine, cells, *arguments)
        engine.accumulate = accumulate  # type: ignore[method-assign]
        return found

    def save(*arguments: Any) -> None:
        if saving and arguments[2].step >= step:
            state.save_file = lambda *args, **kwargs: (strike(), save_file(*args, **kwargs))
        save_state(*arguments)

    loop.take_step, cell.save_state = stepped, save


if __name__ == "__main__":
    name, at, *arguments = sys.argv[1:]
    if name != "none" and os.environ.get("CHAOS_RANK", "all") in ("all", os.environ["RANK"]):
        strike_at(faults[name], int(at))
    sys.exit(main(arguments))
