"""Ranks that are done end with exit code 0."""

from tests.distributed import run_ranks


def test_a_rank_that_is_done_does_not_abort() -> None:
    run_ranks(["tests.training.leaving_worker"], 3)
