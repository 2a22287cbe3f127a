"""One rank that trains a run in three goes: broken off between two validations, to its end, and once more.

Run as `python -m tests.training.validation_worker CONFIG STEP`; rank 0 prints `went STEPS` for each go.
"""

import sys
from collections.abc import Iterator
from contextlib import suppress

from flare_ds.runtime.engine import make_room
from flare_ds.runtime.process_group import rank
from flare_ds.settings import load_config
from flare_ds.training.feed import Portion
from flare_ds.training.run import open_run
from flare_ds.training.trainer import Trainer


class BrokenOff(Exception):
    pass


def go(path: str, *, until: int | None = None) -> None:
    config = load_config(path)
    trainer = Trainer(config, open_run(config, train=True))
    portions, steps = trainer.feed.portions, []

    def counted(number: int) -> Iterator[Portion]:
        if number == until:
            raise BrokenOff
        steps.append(number)
        return portions(number)

    trainer.feed.portions = counted
    with suppress(BrokenOff):
        trainer.train()
    if rank() == 0:
        print(f"\nwent {steps}", flush=True)


def main(path: str, broken_off: str) -> None:
    for until in (int(broken_off), None, None):
        go(path, until=until)
        make_room()


if __name__ == "__main__":
    main(*sys.argv[1:])
