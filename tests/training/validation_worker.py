"""One rank that trains a run in four goes: broken off between two validations, to its end, and twice more.

The third is after a kill before `training.json` was written; the last finds a trained run, as a second command does.
Run as `python -m tests.training.validation_worker CONFIG STEP`; rank 0 prints `went STEPS` for each of the three.
"""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from flare_ds.runtime.engine import make_room
from flare_ds.runtime.process_group import rank
from flare_ds.runtime.rank_zero import on_rank_zero
from flare_ds.settings import load_config
from flare_ds.training.feed import Portion
from flare_ds.training.run import open_run
from flare_ds.training.together import train_together
from tests.training.alone import Trainer


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
    config = load_config(path)
    go(path, until=int(broken_off))
    make_room()
    go(path)
    make_room()
    summary = Path(config.run_dir) / "training.json"
    written = on_rank_zero(summary.read_text)
    on_rank_zero(summary.unlink)
    go(path)
    assert on_rank_zero(summary.read_text) == written
    make_room()
    train_together([(config, open_run(config, train=True))], evaluate=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
