"""One rank that evaluates a run several times in one process: `evaluate_worker RUN OUT`.

What each evaluation leaves in the run directory is copied to `OUT/NAME.parquet` and `OUT/NAME.json`.
"""

import shutil
import sys
from pathlib import Path

from flare_ds.evaluation.evaluate import evaluate_run
from flare_ds.runtime.process_group import barrier, rank
from flare_ds.settings import load_config
from flare_ds.training.run import open_run

RANKED = ["evaluate.answers=ranked"]
EVALUATIONS = {
    "generated": ["evaluate.answers=generated", "generate.max_new_tokens=3"],
    "ranked": RANKED,
    "again": RANKED,
}


def main(run_dir: Path, out: Path) -> None:
    for name, overrides in EVALUATIONS.items():
        config = load_config(run_dir, overrides)
        evaluate_run(config, open_run(config, train=False))
        if rank() == 0:
            shutil.copy(run_dir / "predictions.parquet", out / f"{name}.parquet")
            shutil.copy(run_dir / "metrics.json", out / f"{name}.json")
        barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
