"""Settings as mappings, nested or with dots in their keys, laid over one another."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from flare_ds.exceptions import ConfigError


def nested(settings: Mapping[Any, Any], place: str = "") -> dict[Any, Any]:
    """Settings whose keys may have dots, `{"adapter.r": 8}`, as sections.

    Args:
        settings: as they are written.
        place: where they stand, for messages: "base."

    Raises:
        ConfigError: a setting stands there twice, in a section and with dots.
    """
    layers = []
    for key, value in settings.items():
        *sections, leaf = key.split(".") if isinstance(key, str) else (key,)
        layer = {leaf: nested(value, f"{place}{key}.") if isinstance(value, Mapping) else value}
        for section in reversed(sections):
            layer = {section: layer}
        layers.append(layer)
    for name, times in Counter(name for layer in layers for name in flat(layer)).items():
        if times > 1:
            raise ConfigError(f"{place}{name} is set twice, in its section and with dots", fix="keep one of the two")
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
