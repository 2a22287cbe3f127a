"""A job that is asked to stop stops between two steps, or two batches of rows to score: what is trained is saved, and
the same command goes on.

SIGTERM (a scheduler's, a launcher's) and SIGUSR1 ask; a second SIGTERM, a few seconds later, ends the rank at once. A
launcher and a scheduler may both pass on the same signal, so one that comes right behind the first is the same request.

Python runs its handlers between two instructions of the main thread, which may be inside a collective for long. So the
handlers do nothing, and a thread reads the numbers that Python writes into a pipe the moment a signal comes.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flare_ds.exceptions import ToBeContinued
from flare_ds.failures import leave
from flare_ds.runtime.process_group import gather_objects

_ASKING = (signal.SIGTERM, signal.SIGUSR1)
_SAME_S = 5.0
"""How far behind the first a SIGTERM may come that is the same request."""


class StopRequest:
    """Listens for requests to stop."""

    def __init__(self) -> None:
        self.signal = ""
        """The name of the signal that asked; empty as long as none has."""
        self._leaving = False

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Listen within this; elsewhere than in the main thread Python takes no signals.

        A rank that leaves because it was asked is not to be cut short by the next request.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        handlers = {number: signal.signal(number, lambda *_: None) for number in _ASKING}
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reader,), daemon=True).start()
        try:
            yield self
        finally:
            signal.set_wakeup_fd(wakeup)
            os.close(writer)
            for number, handler in handlers.items():
                signal.signal(number, signal.SIG_IGN if self._leaving else handler)

    def leave_if_asked(self, told: str) -> None:
        """Leave if any rank was asked to; a collective.

        Raises:
            ToBeContinued: saying so.
        """
        if by := next(filter(None, gather_objects(self.signal)), None):
            self._leaving = True  # whatever signal comes now
            raise ToBeContinued(f"{by}: {told}; run the same command again to continue")

    def _listen(self, reader: int) -> None:
        first = 0.0
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number not in _ASKING:
                    continue
                if not self.signal:
                    self.signal, first = signal.Signals(number).name, time.monotonic()
                elif number == signal.SIGTERM and time.monotonic() - first > _SAME_S and not self._leaving:
                    leave(128 + signal.SIGTERM)
        os.close(reader)


_request: StopRequest | None = None
"""The one that this process listens for."""
_between_batches = False
"""Whether one leaves between two batches of rows, too."""
ALL_SAVED = "stopped; all training so far is saved"
"""What is said where a job leaves that was asked to, but for training."""


@contextmanager
def stopping() -> Iterator[StopRequest]:
    """Listen for a request to stop; within another, go on listening, or one that comes at its end would be lost."""
    global _request
    if _request is not None:
        yield _request
        return
    with StopRequest().listening() as _request:
        try:
            yield _request
        finally:
            _request = None


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put back what signals do, for a process that goes on after a training that was asked to stop."""
    before = {number: signal.getsignal(number) for number in _ASKING}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def leaving_between_batches() -> Iterator[None]:
    """Whoever goes over rows within this leaves between two batches, if asked: but for their answers all is saved."""
    global _between_batches
    _between_batches = True
    try:
        yield
    finally:
        _between_batches = False


def leave_if_asked() -> None:
    """Leave if anybody listens and any rank was asked to; see `StopRequest.leave_if_asked`."""
    if _request is not None:
        _request.leave_if_asked(ALL_SAVED)


def between_batches() -> None:
    """Likewise, where `leaving_between_batches` allows it."""
    if _between_batches:
        leave_if_asked()
