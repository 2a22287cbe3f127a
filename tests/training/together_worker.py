"""One rank that trains runs together: `python -m tests.training.together_worker BROKEN CONFIG...`.

With BROKEN = 0 they are scored as well. Otherwise all are broken off after so many steps; then the first goes
on alone to its end, and then the others go on together, from where each of them was saved.
"""

import sys
from collections.abc import Iterator

from flare_ds.config import Config
from flare_ds.runtime.engine import make_room
from flare_ds.settings import load_config
from flare_ds.training.feed import Feed, Portion
from flare_ds.training.run import open_run
from flare_ds.training.together import train_together


class BrokenOff(Exception):
    pass


def go(configs: list[Config], broken: int) -> None:
    if broken:
        broken_off(configs, broken)
        first = configs[0]
        train_together([(first, open_run(first, train=True))], evaluate=False)
    train_together([(config, open_run(config, train=True)) for config in configs], evaluate=not broken)
    make_room()


def broken_off(configs: list[Config], step: int) -> None:
    portions = Feed.portions

    def until(self: Feed, number: int) -> Iterator[Portion]:
        if number == step:
            raise BrokenOff
        return portions(self, number)

    Feed.portions = until  # type: ignore[method-assign]
    try:
        train_together([(config, open_run(config, train=True)) for config in configs], evaluate=False)
    except BrokenOff:
        pass
    finally:
        Feed.portions = portions  # type: ignore[method-assign]
        make_room()


if __name__ == "__main__":
    go([load_config(path) for path in sys.argv[2:]], int(sys.argv[1]))
