"""Progress bars: several times a second on a terminal; in a log, where each update is a line, once a minute."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

IN_A_LOG = 60.0
"""Seconds between two lines; what takes less has none."""


def on_terminal() -> bool:
    """Whether somebody watches."""
    return sys.stderr.isatty()


def bar(items: Iterable[Any] | None = None, **how: Any) -> Any:
    """A bar over items, or one that is moved by hand; `how` as `tqdm` has it."""
    seconds = {"mininterval": 0.2, "delay": 0.5} if on_terminal() else {"mininterval": IN_A_LOG, "delay": IN_A_LOG}
    return tqdm(items, file=sys.stderr, **(seconds | how))
