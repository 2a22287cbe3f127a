"""A request to stop is heard even while the main thread waits; a second one, later, ends the process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from flare_ds.exceptions import ToBeContinued
from flare_ds.runtime.signals import StopRequest, between_batches, leaving_between_batches, stopping


def wait_for(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_request_and_one_right_behind_it_the_same(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest().listening() as stop:
        assert stop.signal == ""
        os.kill(os.getpid(), number)
        wait_for(lambda: stop.signal)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        assert stop.signal == number.name
    assert signal.getsignal(number) == before


def test_a_rank_that_leaves_because_it_was_asked_is_not_cut_short() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with stopping() as stop, leaving_between_batches():
            between_batches()
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_for(lambda: stop.signal)
            with pytest.raises(
                ToBeContinued, match="SIGUSR1: stopped; all training so far is saved; run the same command again"
            ):
                between_batches()
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_one_within_another_is_the_same_and_leaves_where_it_may() -> None:
    with stopping() as outer:
        with stopping() as inner:
            assert inner is outer
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_for(lambda: inner.signal)
        between_batches()  # a validation: its run is not saved
        assert outer.signal == "SIGUSR1", "one that comes at the end of the inner is not lost"
    with stopping() as other:
        assert other is not outer and not other.signal
    between_batches()


SECOND = """
import ctypes
from flare_ds.runtime import signals
signals._SAME_S = 0.2
with signals.StopRequest().listening() as stop:
    print("ready", flush=True)
    while True:
        ctypes.CDLL(None).sleep(60)  # a call that returns to Python only after long, as a collective does
"""


def test_a_second_sigterm_ends_even_a_rank_that_is_in_a_long_call() -> None:
    process = subprocess.Popen([sys.executable, "-c", SECOND], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for _ in range(40):  # a busy machine may hear two as one
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        if process.poll() is not None:
            break
    process.kill()
    assert process.wait() == 128 + signal.SIGTERM
