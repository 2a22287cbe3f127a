"""How long the ranks wait for one another.

    set-up      ranks that meet, and waits for what rank 0 does alone (tokenizing, merging)   1 h
    collective  one operation of the process group                                            10 min
    a beat      a training step, a batch of a validation: see `flare_ds.runtime.watchdog`    from 1 min

DEEPSPEED_TIMEOUT (minutes, DeepSpeed's own variable) replaces all of them. FLARE_DS_SETUP_SECONDS and
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
        ConfigError: an environment variable is not a number above 0.
    """
    return _first(_number("FLARE_DS_SETUP_SECONDS"), _minutes(), SETUP_S)


def collective_timeout() -> timedelta:
    """How long one operation of the process group may take.

    Raises:
        ConfigError: see `setup_seconds`.
    """
    return timedelta(seconds=_first(_minutes(), COLLECTIVE_S))


def beat_seconds() -> float | None:
    """How long a beat may take, where the user says it; None: it is measured.

    Raises:
        ConfigError: see `setup_seconds`.
    """
    given = _number("FLARE_DS_STEP_SECONDS")
    return _minutes() if given is None else given


def _first(*seconds: float | None) -> float:
    return next(value for value in seconds if value is not None)


def _minutes() -> float | None:
    minutes = _number("DEEPSPEED_TIMEOUT")
    return None if minutes is None else 60 * minutes


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
