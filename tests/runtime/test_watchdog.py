"""How long a beat may take."""

import time
from types import SimpleNamespace

import pytest

from flare_ds.runtime import watchdog
from flare_ds.runtime.job import Job
from flare_ds.runtime.watchdog import Pace, Watchdog, pace, unhurried


def bound_after(*seconds: float, steady: bool = True) -> float:
    pace = Pace("training", steady)
    for took in seconds:
        pace.took(took)
    return pace.bound


@pytest.fixture(autouse=True)
def no_bound_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEEPSPEED_TIMEOUT", "FLARE_DS_STEP_SECONDS"):
        monkeypatch.delenv(name, raising=False)


def test_the_slowest_of_the_first_five_steps_decides() -> None:
    assert bound_after() == 600, "before the first, as long as a collective may take"
    assert bound_after(1, 2) == 60
    assert bound_after(1, 7, 30, 2, 1, 100) == 300


def test_of_batches_that_differ_in_length_the_slowest_so_far_decides() -> None:
    assert bound_after(1, 1, 1, 1, 1, 1, 40, 2, steady=False) == 400


def test_steps_of_more_runs_are_measured_anew() -> None:
    pace = Pace("training", steady=True)
    for seconds in (3, 3, 3, 3, 3):
        pace.took(seconds)
    pace.forget()
    assert pace.bound == 600
    pace.took(50)
    assert pace.bound == 500


def test_what_the_user_gives_replaces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSPEED_TIMEOUT", "20")
    assert bound_after(500) == 1200
    monkeypatch.setenv("FLARE_DS_STEP_SECONDS", "7.5")
    assert bound_after(500) == 7.5


def test_what_is_unhurried_is_no_part_of_the_beat_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    job: Job = SimpleNamespace(beats=0, watched=False)  # type: ignore[assignment]
    dog = Watchdog(job)
    monkeypatch.setattr(watchdog, "_watchdog", dog)
    with pace("training") as beat:
        now += 30
        with unhurried():
            assert dog.deadline == now + 3600
            now += 500
        assert dog.deadline == now + 600
        now += 2
        beat()
        assert dog.deadline == now + 320
