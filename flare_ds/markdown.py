"""Tables in Markdown."""

from collections.abc import Sequence

DASH = "-"
"""A cell of which nothing is known, or to be said."""


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose columns also line up in a terminal; a cell may hold what else would end it."""
    lines = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    widths = [max(len(row[i]) for row in (columns, *lines)) for i in range(len(columns))]
    rows = [columns, ["-" * width for width in widths], *lines]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )
