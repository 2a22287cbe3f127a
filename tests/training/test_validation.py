"""When a run validates, on which rows, and when it gives up; and what it says it cost."""

import json
import re
import statistics
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flare_ds.batches.plan import open_order
from flare_ds.config import Config
from flare_ds.data.cache import open_cache, prepare_cache
from flare_ds.models.loading import load_tokenizer
from flare_ds.tracking.figures import PARTS
from tests.distributed import run_ranks
from tests.toy import toy_settings, write_config

ROWS = 7
STOPPED = 6  # validations at 2 (the best so far), 4 and 6
STATE_AT, BROKEN_OFF = 5, 5  # between the two that find nothing better


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Of a run that cannot learn, so that no validation is better than the first."""
    root = tmp_path_factory.mktemp("patience")
    return toy_settings(
        root,
        method="flare",
        steps=30,
        learning_rate=1e-9,
        micro_batch_size=5,
        validate_every=2,
        validate_rows=ROWS,
        patience=2,
        save_every=STATE_AT,
    )


@pytest.fixture(scope="module")
def printed(settings: dict) -> str:
    return run_ranks(["tests.training.validation_worker", str(write_config(settings)), str(BROKEN_OFF)], 2)[0]


@pytest.fixture(scope="module")
def run(settings: dict, printed: str) -> Path:
    return Path(settings["run_dir"])


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_patience_is_kept_over_a_resume_and_a_stopped_run_stays_stopped(run: Path, printed: str) -> None:
    assert re.findall(r"went (.*)", printed) == [str([0, 1, 2, 3, 4]), "[5]", "[]"]
    training = read_json(run / "training.json")
    assert training["stopped_early"] is True and training["steps"] == STOPPED
    assert training["best_step"] == 2


def test_the_start_is_scored_once_and_is_never_the_best(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    validations = {line["step"]: line["validation_score"] for line in lines if "validation_score" in line}
    assert [line["step"] for line in lines if "source_share" not in line] == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]
    assert list(validations) == [0, 2, 4, 6]
    assert read_json(run / "training.json")["start_validation_score"] == validations[0] == validations[6]
    board = EventAccumulator(str(run))
    board.Reload()
    assert [event.step for event in board.Scalars("score/validation")] == [0, 2, 4, 6]


def test_the_parts_of_a_step_are_no_longer_than_it(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step_seconds" in line]
    assert len(steps) == STOPPED
    for line in steps:
        assert 0 < sum(line[part] for part in PARTS) <= line["step_seconds"]


def test_a_part_of_the_validation_rows_is_scored(run: Path) -> None:
    (first, *_) = (run / "train_log.jsonl").read_text().splitlines()
    right = json.loads(first)["validation_accuracy"] * ROWS
    assert right == pytest.approx(round(right), abs=1e-9)


def test_what_was_seen_is_counted(run: Path, settings: dict) -> None:
    config = Config.model_validate(settings)
    cache = open_cache(prepare_cache(config, load_tokenizer(config.model)))
    split, order = cache.split("train"), open_order(config, cache)
    rows = [int(row) for step in range(STOPPED) for row in order.rows(step)]
    tokens = sum(len(split.prompt(stream, row)) for row in rows for stream in ("source", "target"))
    training = read_json(run / "training.json")
    assert training["examples"] == len(rows)
    assert training["tokens_per_step"] == pytest.approx(tokens / STOPPED)
    assert training["padded_tokens_per_step"] > training["tokens_per_step"]
    assert training["flops_per_step"] > training["padded_tokens_per_step"] * 2 * 64 * 64
    lines = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    took = [line["step_seconds"] for line in lines if "step_seconds" in line]
    assert training["median_step_seconds"] == statistics.median(took)
    assert training["tokens_per_second"] == pytest.approx(tokens / sum(took))
