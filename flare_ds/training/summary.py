"""What a training came to, in a few numbers: training.json, which is written last."""

import statistics
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from flare_ds.files import write_json
from flare_ds.models.partitioned import full_numel
from flare_ds.runs.directory import TRAINING, RunDirectory
from flare_ds.runtime.process_group import world_size
from flare_ds.training.state import Progress

_COSTS = ("examples", "tokens", "padded_tokens", "flops", "step_seconds")


def write_summary(
    run_dir: Path, progress: Progress, *, trained: Iterable[nn.Parameter], engine: str, steps: int
) -> None:
    """Sum up a run that has ended; costs are of the steps that were applied.

    Args:
        run_dir: of the run, where its log is.
        progress: where it stands.
        trained: what it trains.
        engine: the name of the one that trained it last.
        steps: how many it might have had.
    """
    log = RunDirectory(run_dir).train_log()
    applied = [line for line in log if "step_seconds" in line and "skipped_rows" not in line]
    totals = {name: sum(line[name] for line in applied) for name in _COSTS}
    summary = {
        "steps": progress.step,
        "skipped_steps": progress.skipped,
        "stopped_early": progress.step < steps,
        "trained_parameters": sum(map(full_numel, trained)),
        "examples": totals["examples"],
        "tokens_per_step": totals["tokens"] / len(applied),
        "padded_tokens_per_step": totals["padded_tokens"] / len(applied),
        "flops_per_step": totals["flops"] / len(applied),
        "median_step_seconds": statistics.median(line["step_seconds"] for line in applied),
        "tokens_per_second": totals["tokens"] / totals["step_seconds"],
        "start_validation_score": progress.start_score,
        "best_step": progress.best_step,
        "best_validation_score": progress.best_standing[0],
        "train_seconds": progress.seconds,
        "engine": engine,
        "world_size": world_size(),
    }
    write_json(run_dir / TRAINING, summary)
