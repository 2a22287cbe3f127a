"""Ranks that are done end with exit code 0, and leave no memory behind."""

import re
from pathlib import Path

from tests.distributed import run_ranks


def test_a_rank_that_is_done_does_not_abort_and_leaves_no_shared_memory() -> None:
    """The abort shows in one run of four only; the memory always."""
    output, *_ = run_ranks(["tests.training.leaving_worker"], 3, LOCAL_SIZE="3")  # as the launcher tells
    found = re.search(r"port (\d+)", output)
    assert found is not None
    assert list(Path("/dev/shm").glob(f"deepspeed_*_{found[1]}_*")) == []
