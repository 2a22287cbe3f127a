"""Training and scoring in one launch leaves what the two leave one after the other."""

import json
import signal
import time
from pathlib import Path

from flare_ds.failures import TO_BE_CONTINUED
from flare_ds.scoring.predictions import read_predictions
from tests.distributed import run_ranks, start_ranks
from tests.toy import toy_settings, write_config


def test_scoring_at_once_leaves_the_files_of_scoring_later(tmp_path: Path) -> None:
    """The last adapter is not the best, or nothing would show which of them was scored."""
    ranked = toy_settings(tmp_path, name="ranked", steps=4, validate_every=1, validate_rows=4, learning_rate=1e-3)
    written = {**toy_settings(tmp_path, method="lora", name="written", steps=2, validate_every=2)}
    written |= {"evaluate": {"answers": "generated"}, "generate": {"max_new_tokens": 2}}
    paths = [str(write_config(settings)) for settings in (ranked, written)]
    run_ranks(["tests.training.evaluated_worker", str(tmp_path), *paths], 2)
    for name in ("ranked", "written"):
        at_once, again = ((tmp_path / f"{name}.{when}.parquet").read_bytes() for when in ("at_once", "again"))
        assert at_once == again, name
        metrics = [json.loads((tmp_path / f"{name}.{when}.json").read_text()) for when in ("at_once", "again")]
        assert metrics[0].pop("evaluate_seconds") > 0 and metrics[1].pop("evaluate_seconds") > 0
        assert metrics[0] == metrics[1]
        assert (tmp_path / name / "training.json").is_file(), "trained once: the second time it is only scored"
    summary = json.loads((tmp_path / "ranked/training.json").read_text())
    assert summary["best_step"] < summary["steps"]
    assert "text" in read_predictions(tmp_path / "written.at_once.parquet")[0]


def test_a_job_that_is_asked_to_stop_while_it_scores_is_continued(tmp_path: Path) -> None:
    """One of two ranks is asked; both leave between two batches, and the same command scores."""
    settings = toy_settings(tmp_path, method="lora", name="run", steps=1) | {"evaluate": {"batch_size": 1}}
    command = ["flare_ds", "train", str(write_config(settings)), "--evaluate"]
    ranks = start_ranks(command, 2)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run/training.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ranks[1].send_signal(signal.SIGUSR1)
    said = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [TO_BE_CONTINUED] * 2, said
    assert "SIGUSR1: stopped; all training so far is saved; run the same command again to continue" in said[0]
    assert not (tmp_path / "run/metrics.json").exists()
    assert "on 101 test examples" in run_ranks(command, 2)[0]
