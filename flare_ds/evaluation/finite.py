"""Scores that are not numbers: found and named, because everything that compares them takes them for some number.

The largest of label scores that are NaN is the first, and a decoder whose logits are NaN writes the first token: both
look like an answer.
"""

import math
from collections.abc import Iterable, Sequence

from flare_ds.exceptions import NotFiniteError

NAMED = 8  # rows a message names


def not_finite(scored: Iterable[tuple[str, Sequence[float]]]) -> list[str]:
    """The ids of the rows, each given with its scores, of which one is infinite or not a number."""
    return [name for name, scores in scored if not all(map(math.isfinite, scores))]


def refuse_not_finite(ids: Sequence[str], what: str) -> None:
    """Refuse to go on with such rows, if there are any; the message says `what` they are among, e.g. `test rows`.

    Raises:
        NotFiniteError: there is one.
    """
    if ids:
        raise NotFiniteError(
            f"the model's scores of {len(ids)} {what} are not finite: {listed(ids)}",
            fix="inspect these rows or, if all rows are affected, the base and the adapter; "
            "try model.dtype=float32 or model.attention=eager",
        )


def listed(ids: Sequence[str]) -> str:
    """The first few ids, and how many there are besides."""
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + more
