"""What every process of a pool of ours does, and how many of them there is room for."""

import os
from multiprocessing import parent_process
from threading import Thread


def available_cores() -> int:
    """The cores this process may run on; all of the host where a system, as macOS, does not say which."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """From now on, end when the parent is gone: a pool does not notice that its parent was killed, and would wait."""
    Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
