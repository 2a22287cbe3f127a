"""`flare_ds` on one rank, where a run is watched in a place that answers late: `watched_worker STEP_S LATE_S VERB...`.

A step may take STEP_S seconds; to take up the numbers of the second one takes the place LATE_S.
"""

import os
import sys
import time
from collections.abc import Mapping

from flare_ds.__main__ import main
from flare_ds.tracking.on_tensorboard import OnTensorBoard


def answer_late(seconds: float) -> None:
    scalars = OnTensorBoard.scalars

    def late(self: OnTensorBoard, values: Mapping[str, float], step: int) -> None:
        if step == 2 and "loss/train" in values:
            time.sleep(seconds)
        scalars(self, values, step)

    OnTensorBoard.scalars = late  # type: ignore[method-assign]


if __name__ == "__main__":
    bound, seconds, *arguments = sys.argv[1:]
    os.environ["FLARE_DS_STEP_SECONDS"] = bound
    answer_late(float(seconds))
    sys.exit(main(arguments))
