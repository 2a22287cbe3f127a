"""JSON, written so that any reader takes it, and read as what may come from anybody.

What is not plain JSON of sensible depth is a ValueError, never worse.
"""

import json
import math
from typing import Any

_DEEPEST = 50
"""Lists and objects within each other; Python's own limit is met in places that cannot be foreseen."""


def json_text(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON that any reader takes: NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_without_not_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _without_not_finite(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {key: _without_not_finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_without_not_finite(inner) for inner in value]
    return value


def parse_json(text: str | bytes) -> Any:
    """Read one JSON value.

    Args:
        text: as text, or in UTF-8.

    Raises:
        ValueError: it is not JSON or not UTF-8, is nested too deep, or holds half of a surrogate pair.
    """
    text = text if isinstance(text, str) else text.decode("utf-8")
    try:
        value = json.loads(text)
    except RecursionError:
        raise _too_deep() from None
    # A line of a log has neither so many brackets nor a character by its number, and there are many of them.
    if text.count("[") + text.count("{") >= _DEEPEST or "\\u" in text or not text.isascii():
        _check(value, _DEEPEST)
    return value


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        ValueError: see `parse_json`; or it is another value.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError(f"it holds {type(value).__name__}, not an object")
    return value


def parse_lines(text: str) -> list[dict[str, Any]]:
    """Read an object a line; what stands behind the last line's end is left out: a crash cut it off.

    Raises:
        ValueError: see `parse_object`.
    """
    *lines, _ = text.split("\n")
    # Flat lines at one go, in a third of the time; whatever is odd about them is found line by line.
    flat = text.isascii() and "\\u" not in text and text.count("[") + text.count("{") < len(lines) + _DEEPEST
    try:
        found = json.loads(f"[{','.join(lines)}]") if flat else []
    except (ValueError, RecursionError):
        found = []
    if len(found) == len(lines) and all(isinstance(value, dict) for value in found):
        return found
    return [parse_object(line) for line in lines]


def _check(value: Any, left: int) -> None:
    if not left:
        raise _too_deep()
    if isinstance(value, str):
        value.encode("utf-8")  # a UnicodeEncodeError is a ValueError
    elif isinstance(value, list | dict):
        for inner in value:
            _check(inner, left - 1)
        for inner in value.values() if isinstance(value, dict) else ():
            _check(inner, left - 1)


def _too_deep() -> ValueError:
    return ValueError(f"it is nested deeper than {_DEEPEST} lists and objects")
