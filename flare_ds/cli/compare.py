"""How two caches differ, field by field of what their tokens depend on."""

from collections.abc import Iterator, Mapping
from typing import Any

from flare_ds.data.cache.key import differing


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Say each field that differs, with its value on both sides; nothing where all are equal.

    Args:
        a: the `fields` of a manifest, or those a config wants.
        b: the same of another.
    """
    for name in differing(a, b):
        yield name
        yield f"  a  {_said(a, name)}"
        yield f"  b  {_said(b, name)}"


def _said(fields: Mapping[str, Any], name: str) -> str:
    return repr(fields[name]) if name in fields else "(absent)"
