"""Merge a run in a process of its own and print by how much its resident memory rose at most, in bytes.

Run as `python -m tests.models.merge_worker FIRST RUN OUTPUT`; the merge of FIRST only loads what any merge loads.
"""

import re
import sys
from pathlib import Path

from flare_ds.models.merge import merge_run
from flare_ds.settings import load_config


def resident(peak: bool) -> int:
    """Bytes, now or at most so far; getrusage would count the parent's from before exec."""
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status)
    return int(kilobytes) * 1024


def main(first: str, run: str, output: str) -> None:
    merge_run(load_config(first), Path(output + "-first"))
    before = resident(peak=False)
    merge_run(load_config(run), Path(output))
    print("rise", resident(peak=True) - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
