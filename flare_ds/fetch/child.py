"""Run another program for a user who is watching: its output passes through to stderr, its last words are kept."""

import os
import subprocess
from collections.abc import Mapping, Sequence

from flare_ds.exceptions import HostError

_KEPT_BYTES = 8192


def run_child(command: Sequence[str], settings: Mapping[str, str]) -> tuple[int, str]:
    """Run `command` with `settings` added to the environment.

    Its stdout and stderr both appear on our stderr while it runs, since our stdout is for results.

    Returns:
        the exit status, and the last 8 KiB of the program's stderr.

    Raises:
        HostError: the program was killed (most often for memory), or found the disk full.
    """
    with subprocess.Popen(command, stdout=2, stderr=subprocess.PIPE, env=os.environ | settings) as child:
        assert child.stderr is not None
        tail = b""
        while chunk := os.read(child.stderr.fileno(), 4096):
            os.write(2, chunk)
            tail = (tail + chunk)[-_KEPT_BYTES:]
    words = tail.decode(errors="replace")
    if child.returncode == -9:
        problem = f"{' '.join(command[1:4])} was killed, most often for lack of memory"
        raise HostError(problem, fix="free about 4 GB of memory and run the same command again")
    if child.returncode and "No space left on device" in words:
        problem = f"{' '.join(command[1:4])} found the disk full"
        raise HostError(problem, fix="free some disk, or set FLARE_DS_HOME to a larger one, and run again")
    return child.returncode, words


def last_line(words: str) -> str:
    """The last line that is not empty, which is where programs say why they ended."""
    return next((line.strip() for line in reversed(words.splitlines()) if line.strip()), "it said nothing")
