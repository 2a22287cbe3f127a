"""Work that goes in beats (steps, batches) is watched: a rank that waits for another does not wait for an hour.

A beat may take ten times as long as the slowest of the first five (of batches, which differ in length: of all so far),
and always a minute. The first beat of a kind, which also compiles and allocates, may take as long as a collective.
Who is ahead waits for those behind as long as they live and watch their own work: they may be slower, and know it best.
Where a call holds the interpreter no thread of ours can run; then the timer of `faulthandler`, which is written in C,
writes the stacks and ends the process with status 1. What waits for nobody is not watched: one rank, or what a rank
does alone.
"""

import faulthandler
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock, Thread

from flare_ds.runtime.job import Job
from flare_ds.runtime.process_group import is_alone
from flare_ds.runtime.timeouts import beat_seconds, collective_timeout, setup_seconds

_LEAST_S, _TIMES, _FIRST = 60.0, 10, 5
_GRACE_S = 20.0
"""How long after a deadline the timer in C goes off: by then our thread has found out who is behind, if it can."""


@dataclass
class Pace:
    """How long the beats of one kind of work take.

    Attributes:
        what: the work.
        steady: whether its beats take equally long; batches by length do not.
        beats: how many were measured.
        slowest: of them, in seconds.
    """

    what: str
    steady: bool
    beats: int = 0
    slowest: float = 0.0

    def took(self, seconds: float) -> None:
        """One more beat; of those that are alike only the first few say how long the others may take."""
        if self.beats < _FIRST or not self.steady:
            self.beats, self.slowest = self.beats + 1, max(self.slowest, seconds)

    def forget(self) -> None:
        """What was measured says nothing of the beats that come."""
        self.beats, self.slowest = 0, 0.0

    @property
    def bound(self) -> float:
        """How long the next beat may take, in seconds."""
        if (given := beat_seconds()) is not None:
            return given
        return max(_LEAST_S, _TIMES * self.slowest) if self.beats else collective_timeout().total_seconds()


class Watchdog:
    """Watches the work of one rank, whose job is ended when that stands still."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.paces: dict[str, Pace] = {}
        self.current: Pace | None = None
        self.since = self.deadline = time.monotonic()
        self._setting = RLock()
        Thread(target=self._watch, daemon=True).start()

    def beat(self, anew: bool = False) -> None:
        """A beat of the current work is done; anew: those that follow take longer, nobody knows how long."""
        assert self.current is not None
        self.current.took(time.monotonic() - self.since)
        if anew:
            self.current.forget()
        self.job.beats += 1
        self.arm(self.current.bound)

    def begin(self, pace: Pace | None) -> Pace | None:
        """Watch this work from now on; what was watched before."""
        with self._setting:
            before, self.current, self.job.watched = self.current, pace, pace is not None
            if pace is None:
                faulthandler.cancel_dump_traceback_later()
            else:
                self.arm(pace.bound)
        return before

    def arm(self, seconds: float, *, worked: float = 0.0) -> None:
        """Expect the next beat within so many seconds; of what it measures, so many are worked already."""
        with self._setting:
            self.since = time.monotonic() - worked
            self._allow(seconds)

    def _allow(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(seconds + _GRACE_S, exit=True, file=sys.__stderr__)

    def _watch(self) -> None:
        while True:
            time.sleep(0.5)
            with self._setting:
                current, since, late = self.current, self.since, time.monotonic() > self.deadline
            if current is None or not late:
                continue
            self.job.stalled(current.what, time.monotonic() - since)
            with self._setting:
                if self.current is current and self.since == since:  # it waits yet
                    self._allow(current.bound)


_watchdog: Watchdog | None = None


def watch(job: Job) -> None:
    """Several ranks have met: watch what is done at a pace from now on."""
    global _watchdog
    _watchdog = Watchdog(job)


@contextmanager
def pace(what: str, *, steady: bool = True, anew: bool = False) -> Iterator[Callable[..., None]]:
    """Work that goes in beats; what is given is called after each.

    Args:
        what: the user is told that it stands still, if it does. Its pace is remembered.
        steady: whether the beats take equally long; otherwise the slowest so far counts, not that of the first five.
        anew: whether what was measured of such work before says nothing of this.
    """
    if (dog := _watchdog) is None or is_alone():
        yield lambda **_: None
        return
    own = dog.paces.setdefault(what, Pace(what, steady))
    if anew:
        own.forget()
    before = dog.begin(own)
    try:
        yield dog.beat
    finally:
        dog.begin(before)


@contextmanager
def unhurried() -> Iterator[None]:
    """Something that one rank does alone, within a beat: the others wait for it as long as for a set-up.

    It is no part of what the beat is measured to take.
    """
    if (dog := _watchdog) is None or dog.current is None:
        yield
        return
    worked = time.monotonic() - dog.since
    dog.arm(setup_seconds())
    try:
        yield
    finally:
        dog.arm(dog.current.bound, worked=worked)
