"""Ranks that go over their rows each at its own pace: who is done first waits as long as the others go on."""

import socket

import pytest

from flare_ds.failures import STALLED
from tests.distributed import run_ranks, start_ranks, told

WORKER, STEP_S = "tests.evaluation.slower_worker", "4"


def test_a_rank_that_is_done_waits_longer_than_a_batch_takes_for_one_that_goes_on() -> None:
    outputs = run_ranks([WORKER], 2, timeout=200, FLARE_DS_STEP_SECONDS=STEP_S)
    assert all("answered 28" in output for output in outputs), outputs


@pytest.mark.parametrize("how", ["stopped", "hangs"])
def test_a_rank_that_is_done_does_not_wait_for_one_that_goes_on_no_more(how: str) -> None:
    ranks = start_ranks([WORKER, how], 2, FLARE_DS_STEP_SECONDS=STEP_S)
    try:
        output = ranks[0].communicate(timeout=200)[0]
        if how == "hangs":
            output = ranks[1].communicate(timeout=200)[0]
    finally:
        for rank in ranks:
            rank.kill()
    host = socket.gethostname()
    (message,) = told(output)
    assert ranks[0].returncode == STALLED
    if how == "stopped":
        assert f"no sign of life from rank 1 on {host}" in message
    else:
        assert f"[rank 1 on {host}] going over the test rows has made no progress" in message, "it says so itself"
