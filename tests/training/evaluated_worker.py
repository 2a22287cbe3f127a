"""One rank that trains and scores runs in one go, and scores them again: `evaluated_worker OUT CONFIG...`.

What each scoring leaves is copied to `OUT/RUN.at_once.*` and `OUT/RUN.again.*`.
"""

import shutil
import sys
from pathlib import Path

from flare_ds.runtime.engine import make_room
from flare_ds.runtime.process_group import barrier, rank
from flare_ds.settings import load_config
from flare_ds.training.run import open_run
from flare_ds.training.together import train_together


def main(out: Path, *paths: str) -> None:
    for path in paths:
        config = load_config(path)
        run = Path(config.run_dir)
        for when in ("at_once", "again"):
            train_together([(config, open_run(config, train=True))], evaluate=True)
            make_room()
            if rank() == 0:
                shutil.move(run / "predictions.parquet", out / f"{run.name}.{when}.parquet")
                shutil.move(run / "metrics.json", out / f"{run.name}.{when}.json")
            barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
