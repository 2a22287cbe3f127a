"""Two ranks that need nothing of each other while they go over rows, of which rank 1 is slower; then it may hang.

python -m tests.evaluation.slower_worker [stopped|hangs]
"""

import os
import signal
import sys
import time

import numpy as np

from flare_ds.batches.batching import MicroBatch
from flare_ds.evaluation.batches import go_over
from flare_ds.failures import end
from flare_ds.runtime.joining import join_process_group
from flare_ds.runtime.process_group import finish, rank

BATCHES = 14


def ask(micro_batch: MicroBatch) -> list[int]:
    """An answer a row; rank 1 takes its time, and may take it for ever at the fourth of its batches."""
    (row,) = micro_batch.rows.tolist()
    if rank() == 1:
        time.sleep(1)
        if row == 7 and sys.argv[1:] == ["stopped"]:
            os.kill(os.getpid(), signal.SIGSTOP)
        if row == 7 and sys.argv[1:] == ["hangs"]:
            time.sleep(1000)
    return [row]


if __name__ == "__main__":
    try:
        join_process_group()
        mine = [MicroBatch(np.array([2 * n + rank()]), np.ones(1, np.float32)) for n in range(BATCHES)]
        print("answered", len(go_over(mine, ask, what="test", count=2 * BATCHES)), flush=True)
        finish()
    except BaseException as error:
        sys.exit(end(error, on_every_rank=True))
