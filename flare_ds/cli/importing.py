"""Importing torch, transformers and DeepSpeed, which is most of what a short command does."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import inside without the garbage collector: it takes a fifth of the time, and what it looks at is all in use."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()  # no later collection looks at it either
