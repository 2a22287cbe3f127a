"""JSON, written so that any reader takes it, and read as what may come from anybody.

What is not plain JSON of sensible depth is a ValueError, never worse.
"""

import json
import math
from typing import Any

from pydantic_core import from_json


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
    """Read one JSON value, given as text or in UTF-8.

    Raises:
        ValueError: it is not JSON or not UTF-8, is nested too deep (pydantic says how deep), or holds half of a
            surrogate pair.
    """
    return from_json(text.encode() if isinstance(text, str) else text)


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
    """Read an object a line; what stands behind the last line's end is left out: a crash cut it off."""
    return [parse_object(line) for line in text.split("\n")[:-1]]
