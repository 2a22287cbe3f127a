"""The tests' own way of starting ranks."""

from tests.distributed import run_ranks


def test_a_rank_may_say_more_than_a_pipe_holds_while_another_waits_for_it() -> None:
    first, second = run_ranks(["tests.talking_worker"], 2, timeout=60)
    assert len(first) < 10_000 and len(second) > 1_000_000
