"""Work that one rank does for all, and checks that all make together: what goes wrong is raised on every rank.

A rank that raised alone would leave the others waiting for it in the next collective.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from flare_ds.exceptions import FlareError, RankFailed, on_every_rank
from flare_ds.failures import described
from flare_ds.runtime.process_group import first_object, gather_objects, rank, ranks_named
from flare_ds.runtime.watchdog import unhurried

P = ParamSpec("P")
T = TypeVar("T")
Problem = FlareError | RankFailed


def on_rank_zero(work: Callable[P, T], *about: P.args, **how: P.kwargs) -> T:
    """Do `work` on rank 0 and give its result to every rank; a collective.

    Raises:
        FlareError: what rank 0 met, on every rank.
        RankFailed: rank 0 met another error.
    """
    with unhurried():
        result, problem = _tried(work, *about, **how) if rank() == 0 else (None, None)
        result, problem = first_object((result, problem))
    if problem is not None:
        raise on_every_rank(problem)
    return result


def agreed(check: Callable[P, T], *about: P.args, **how: P.kwargs) -> T:
    """Do on every rank what can go otherwise on each: read a file, look at this GPU; a collective.

    Returns:
        What this rank's own check gives.

    Raises:
        FlareError: what the first rank met that met anything, on every rank; naming the ranks, unless it was all.
        RankFailed: it met another error.
    """
    result, problem = _tried(check, *about, **how)
    problems = gather_objects(problem)
    failed = [number for number, met in enumerate(problems) if met is not None]
    if not failed:
        assert problem is None
        return result  # type: ignore[return-value]
    first = problems[failed[0]]
    if isinstance(first, FlareError) and len(failed) < len(problems):
        first = type(first)(f"[{ranks_named(failed)}] {first.problem}", fix=first.fix)
    raise on_every_rank(first)


def _tried(work: Callable[P, T], *about: P.args, **how: P.kwargs) -> tuple[T | None, Problem | None]:
    try:
        return work(*about, **how), None
    except FlareError as error:
        return None, error
    except Exception as error:
        if ranks_named([0]) == "":
            raise  # one rank alone: its own traceback says it best
        trace, message = described(error)
        return None, RankFailed(f"[{ranks_named([rank()])}] {message}", trace)
