"""What the ranks tell one another beside their collectives: signs of life, and the one notice that ends the job.

A thread of each rank writes a number that grows every second. A rank that was killed or stopped, or in which a call
holds the interpreter, writes nothing: that is how the others find out who it is.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from threading import Thread
from typing import TypeVar

import torch.distributed as dist

INTERVAL_S = 1.0
_PATIENCE_S = 5.0
T = TypeVar("T")


@dataclass(frozen=True)
class Notice:
    """What ends the job: who found it and where, what the user is told, and the exit status of every rank."""

    rank: int
    host: str
    message: str
    status: int


class Board:
    """The board of a job, in a store that all ranks reach."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size

    def sign(self, count: int, beats: int, watched: bool) -> None:
        """Say that this rank lives, how many beats of its work are done, and whether it watches for the next itself."""
        self.store.set(f"alive/{self.rank}", f"{count} {beats} {watched:d}")

    def post(self, notice: Notice) -> Notice:
        """Put up a notice, unless there is one; the one that is up then."""
        mine = json.dumps(asdict(notice))
        up = _within(_PATIENCE_S, lambda: self.store.compare_set("notice", "", mine).decode(), mine)
        return Notice(**json.loads(up))

    def notice(self) -> Notice | None:
        """The notice, once there is one."""
        return Notice(**json.loads(self.store.get("notice"))) if self.store.check(["notice"]) else None

    def read(self) -> None:
        """Say that this rank has read the notice."""
        _within(_PATIENCE_S, lambda: self.store.add("read", 1), 0)

    def wait_for_readers(self) -> None:
        """Keep the board up until all others have read the notice, or a moment has passed: it may go with us."""

        def all_read() -> None:
            while self.store.add("read", 0) < self.world_size - 1:
                time.sleep(0.1)

        _within(3 * INTERVAL_S, all_read, None)

    def silent(self) -> list[int]:
        """Ranks that give no sign of life; takes some seconds. Where the board itself is silent: rank 0, its keeper."""

        def changed() -> list[int]:
            before = self._signs()
            time.sleep(3.5 * INTERVAL_S)
            after = self._signs()
            return [rank for rank in range(self.world_size) if rank != self.rank and before[rank] == after[rank]]

        return _within(_PATIENCE_S + 3.5 * INTERVAL_S, changed, [0])

    def behind(self) -> tuple[list[int], bool]:
        """Ranks whose work is furthest behind, none where all are equally far; whether they watch it themselves."""

        def read() -> list[list[int]]:
            return [[int(number) for number in (sign or "0 0 0").split()[1:]] for sign in self._signs()]

        signs = _within(_PATIENCE_S, read, [[0, 0]])
        beats = [done for done, _ in signs]
        behind = [rank for rank, done in enumerate(beats) if done == min(beats)] if min(beats) < max(beats) else []
        return behind, all(signs[rank][1] for rank in behind)

    def _signs(self) -> list[str]:
        keys = [f"alive/{rank}" for rank in range(self.world_size)]
        return [self.store.get(key).decode() if self.store.check([key]) else "" for key in keys]


def _within(seconds: float, ask: Callable[[], T], otherwise: T) -> T:
    """What `ask` finds; `otherwise` where that takes longer or fails, as it does when rank 0 is gone or stopped."""
    found: list[T] = []

    def run() -> None:
        try:
            found.append(ask())
        except (RuntimeError, ValueError):  # torch's network errors
            return

    asking = Thread(target=run, daemon=True)
    asking.start()
    asking.join(seconds)
    return found[0] if found else otherwise
