"""Two ranks, of which the first keeps the other waiting: python -m tests.training.alone_worker works|comes_late."""

import os
import sys
import time

from flare_ds.failures import end
from flare_ds.runtime import meeting
from flare_ds.runtime.joining import join_process_group
from flare_ds.runtime.process_group import rank
from flare_ds.runtime.rank_zero import agreed, on_rank_zero

if __name__ == "__main__":
    meeting.setup_seconds = lambda: 120.0  # to come takes a while on a busy machine
    os.environ["FLARE_DS_SETUP_SECONDS"] = "6"
    try:
        join_process_group()
        if sys.argv[1] == "works":
            on_rank_zero(lambda: time.sleep(100))
        elif rank() == 0:
            time.sleep(100)
        agreed(lambda: None)
    except BaseException as error:
        sys.exit(end(error, on_every_rank=True))
