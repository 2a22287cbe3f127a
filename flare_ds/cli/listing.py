"""Caches and their kin as lines of a table."""

from collections.abc import Sequence

from flare_ds.human import human_age, human_size
from flare_ds.kept import Kept


def table(found: Sequence[Kept]) -> list[str]:
    """A line for each, below a heading."""
    rows = [("kind", "task", "languages", "rows", "size", "age", "state", "directory"), *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cells(kept: Kept) -> tuple[str, ...]:
    told = (cell or "–" for cell in (kept.kind.name if kept.kind else "", *kept.about))
    return *told, human_size(kept.bytes), human_age(kept.seconds_old), kept.state, str(kept.path)
