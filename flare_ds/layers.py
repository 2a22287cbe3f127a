"""Settings as mappings, nested or with dots in their keys, laid over one another."""

from collections.abc import Mapping
from typing import Any


def nested(settings: Mapping[Any, Any]) -> dict[Any, Any]:
    """Settings whose keys may have dots, `{"adapter.r": 8}`, as sections; the later of two of one name wins."""
    layers = []
    for key, value in settings.items():
        *sections, leaf = key.split(".") if isinstance(key, str) else (key,)
        layer = {leaf: nested(value) if isinstance(value, Mapping) else value}
        for section in reversed(sections):
            layer = {section: layer}
        layers.append(layer)
    return merged(*layers)


def flat(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """Settings by dotted name; empty sections say nothing."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        below = {f"{key}.{name}": inner for name, inner in flat(value).items()} if isinstance(value, Mapping) else None
        found |= {str(key): value} if below is None else below
    return found


def merged(*layers: Mapping[Any, Any]) -> dict[Any, Any]:
    """Nested mappings laid over one another; the later wins."""
    result: dict[Any, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = result.get(key)
            result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return result
