"""How long the ranks wait for one another.

    set-up      ranks that meet, and waits for what rank 0 does alone (tokenizing, merging)   1 h
    collective  one operation of the process group                                            10 min
    a beat      a training step, a batch of a validation: see `flare_ds.runtime.watchdog`    from 1 min

DEEPSPEED_TIMEOUT (whole minutes, DeepSpeed's own variable) replaces all of them. FLARE_DS_SETUP_SECONDS and
FLARE_DS_STEP_SECONDS go before it, for the set-up and for a beat.
"""

import os
from datetime import timedelta

from flare_ds.exceptions import ConfigError

SETUP_S = 3600.0
COLLECTIVE_S = 600.0


def setup_seconds() -> float:
    """How long a rank waits for others to come, or for what one of them does alone.

    Raises:
        ConfigError: an environment variable is not a number above 0, or DEEPSPEED_TIMEOUT no whole one.
    """
    return _first(_number("FLARE_DS_SETUP_SECONDS"), _minutes(), SETUP_S)


def collective_timeout() -> timedelta:
    """How long one operation of the process group may take."""
    return timedelta(seconds=_first(_minutes(), COLLECTIVE_S))


def beat_seconds() -> float | None:
    """How long a beat may take, where the user says it; None: it is measured."""
    given = _number("FLARE_DS_STEP_SECONDS")
    return _minutes() if given is None else given


def check_timeouts() -> None:
    """Look at what the environment says before DeepSpeed is imported, which ends in a traceback of its own."""
    _ = setup_seconds(), beat_seconds()  # which read all of them


def _first(*seconds: float | None) -> float:
    return next(value for value in seconds if value is not None)


def _minutes() -> float | None:
    text = os.environ.get("DEEPSPEED_TIMEOUT")
    if text is None:
        return None
    if not (text.isdecimal() and int(text)):
        fix = "give whole minutes, or seconds: FLARE_DS_SETUP_SECONDS, FLARE_DS_STEP_SECONDS"
        raise ConfigError(f"DEEPSPEED_TIMEOUT={text!r} in the environment is not a whole number above 0", fix=fix)
    return 60.0 * int(text)


def _number(name: str) -> float | None:
    text = os.environ.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{name}={text!r} in the environment is not a number above 0", fix=f"unset {name}")
    return value
