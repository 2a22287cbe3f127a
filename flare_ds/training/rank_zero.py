"""Work that one rank does for all."""

from collections.abc import Callable
from typing import TypeVar

from flare_ds.exceptions import FlareError
from flare_ds.training.process_group import gather_objects, rank

T = TypeVar("T")


def on_rank_zero(work: Callable[[], T]) -> T:
    """Do `work` on rank 0 and give its result to every rank; a collective.

    Raises:
        FlareError: what rank 0 met, on every rank: none is left waiting in the next collective.
    """
    result: T | None = None
    problem: FlareError | None = None
    if rank() == 0:
        try:
            result = work()
        except FlareError as error:
            problem = error
    result, problem = gather_objects((result, problem))[0]
    if problem is not None:
        raise problem
    return result
