"""One rank of the order tests: runs of several methods, each broken off, continued, and their rows written down.

Run as `python -m tests.training.order_worker OUT CONFIG ...`; rank 0 writes, for each run, the rows of each step as the
ranks together had them, and the losses, straight through and continued from a saved state.
"""

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from flare_ds.config import Config
from flare_ds.runtime.process_group import gather_objects, rank
from flare_ds.settings import load_config
from flare_ds.training import cell as module
from flare_ds.training.feed import Feed, Portion
from flare_ds.training.run import open_run
from flare_ds.training.state import save_state
from tests.training.alone import Trainer

SAVED, STEPS = 2, 5


class RecordedFeed(Feed):
    """Writes down the rows that count in its micro-batches."""

    def portions(self, step: int) -> Iterator[Portion]:
        for portion in super().portions(step):
            self.seen.append(portion.rows)
            yield portion


class RecordedTrainer(Trainer):
    """Tells what it was fed with."""

    def run_steps(self, first: int, end: int) -> list[dict[str, Any]]:
        """What the ranks together did in each of these steps."""
        found = []
        for step in range(first, end):
            self.feed.seen = []
            values = self.step(step)
            ranks = gather_objects(self.feed.seen)
            rows = sorted(row for micro_batches in ranks for rows in micro_batches for row in rows)
            micro_steps = [len(micro_batches) for micro_batches in ranks]
            found.append({"rows": rows, "micro_steps": micro_steps, "loss": values["loss"]})
        return found


def run(config: Config) -> dict[str, Any]:
    """Some steps, saved on the way; and those after the save again, as a new process would do them."""
    trainer = RecordedTrainer(config, open_run(config, train=True))
    steps = trainer.run_steps(0, SAVED)
    trainer.progress.step = SAVED
    save_state(trainer.state_path, trainer.engine, trainer.progress)
    steps += trainer.run_steps(SAVED, STEPS)
    del trainer
    unset_hf_deepspeed_config()
    gc.collect()
    again = RecordedTrainer(config, open_run(config, train=True))
    assert again.progress.step == SAVED
    return {"total": again.steps, "steps": steps, "continued": again.run_steps(SAVED, STEPS)}


def main(out: str, *paths: str) -> None:
    module.Feed = RecordedFeed  # type: ignore[misc]
    found = []
    for path in paths:
        found.append(run(load_config(path)))
        unset_hf_deepspeed_config()
        gc.collect()
    if rank() == 0:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
