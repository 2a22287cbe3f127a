"""One rank of the methods' tests: a task adapter trained and merged, then every run trained and evaluated.

Run as `python -m tests.methods_worker STAGE1_CONFIG TUNED_BASE CONFIG ...`.
"""

import sys
from pathlib import Path

from flare_ds.config import Config
from flare_ds.evaluation.evaluate import evaluate_run
from flare_ds.models.merge import merge_run
from flare_ds.runtime.engine import make_room
from flare_ds.runtime.rank_zero import on_rank_zero
from flare_ds.settings import load_config
from flare_ds.training.run import open_run
from flare_ds.training.together import train_together


def run(config: Config) -> None:
    if config.recipe.trains:
        train_together([(config, open_run(config, train=True))], evaluate=False)
    evaluate_run(config, open_run(config, train=False))
    make_room()


def main(stage1: str, tuned: str, *paths: str) -> None:
    config = load_config(stage1)
    run(config)
    on_rank_zero(lambda: merge_run(config, Path(tuned)))
    for path in paths:
        run(load_config(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
