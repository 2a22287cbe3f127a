"""Ranks whose rank 0 is asked to stop while it makes the tokens, which nobody has trained on yet.

Run as `python -m tests.training.asked_worker train CONFIG ...`, as the command line; with `python CONFIG` from Python.
"""

import os
import signal
import sys
import time

import pytest

import flare_ds
from flare_ds.cli import main
from flare_ds.data.cache import prepare_cache
from flare_ds.training import run


def asked(*arguments: object) -> object:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)
    return prepare_cache(*arguments)  # type: ignore[arg-type]


def from_python(config: str) -> int:
    with pytest.raises(flare_ds.ToBeContinued, match="SIGTERM: stopped; all training so far is saved"):
        flare_ds.train(config)
    return 75


if __name__ == "__main__":
    run.prepare_cache = asked  # type: ignore[assignment]
    sys.exit(from_python(*sys.argv[2:]) if sys.argv[1] == "python" else main(sys.argv[1:]))
