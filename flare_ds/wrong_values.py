"""What is wrong with a value, in plain words: pydantic's are of Python's types, once for each that it could be.

evaluate.batch_size='big' is neither a whole number nor auto
"""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from flare_ds.registry import suggestion

_BRANCH = re.compile(r"(list|dict|tuple|literal)\[.*|constrained-.*|int|float|str|bool|\[key\]")
"""How pydantic says in a place which of several types it tried, or that it means the key."""
_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a section",
    "mapping": "a section",
    "too": "a list with at least one item",
}
"""By the first word of pydantic's kinds of problem."""
_BOUNDS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}


def refused(error: ValidationError) -> dict[tuple[str, ...], list[ErrorDetails]]:
    """What is refused, by the place of the setting; a list where each of its types refuses it."""
    found: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for details in error.errors():
        if details["type"] != "default_factory_not_called":  # what it is made of is refused itself
            place = tuple(str(part) for part in details["loc"] if not _BRANCH.fullmatch(str(part)))
            found.setdefault(place, []).append(details)
    # Of a list with a wrong item the item is told, and not that the list is no other type either.
    inner = {place[:length] for place in found for length in range(1, len(place))}
    return {place: details for place, details in found.items() if place not in inner}


def worded(name: str, refusals: Sequence[ErrorDetails], *, origin: str) -> tuple[str, str]:
    """What is wrong with a value, and what to do.

    Args:
        name: of the setting.
        refusals: why each type that it could have refuses it.
        origin: where it was read.
    """
    value = refusals[0]["input"]
    choices = [choice for refusal in refusals for choice in _choices(refusal)]
    wanted = [*(_wanted(refusal) for refusal in refusals if not _choices(refusal)), *choices]
    if value is None:
        return f"{name} in {origin} has no value", f"set it to {_listed(wanted, 'or')}"
    shown = f"{name}={value!r:.200} in {origin}"
    if value in ("", [], ()):
        return f"{shown} is empty", f"give {_listed(wanted, 'or')}"
    problem = f"{shown} is {'neither' if len(wanted) > 1 else 'not'} {_listed(wanted, 'nor')}"
    if wanted == choices and isinstance(value, str):
        return problem, suggestion(value, choices)
    as_list = f", e.g. {name}=[{value}]" if "a list" in wanted and isinstance(value, str) else ""
    return problem, f"set {name} to {_listed(wanted, 'or')}{as_list}"


def _choices(refusal: ErrorDetails) -> list[str]:
    """The words that may stand there, as they are written in YAML."""
    if refusal["type"] != "literal_error":
        return []
    said = re.findall(r"'[^']*'|[^\s',]+", refusal["ctx"]["expected"])
    return [word.strip("'") if word.startswith("'") else word.lower() for word in said if word != "or"]


def _wanted(refusal: ErrorDetails) -> str:
    for key, bound in refusal.get("ctx", {}).items():
        if key in _BOUNDS:
            return f"a number {_BOUNDS[key]} {bound:g}"
    if refusal["type"] == "string_too_short":
        return "a text that is not empty"
    return _WANTED.get(refusal["type"].partition("_")[0], f"right ({refusal['msg']})")


def _listed(things: Sequence[Any], last: str) -> str:
    *first, end = things
    return f"{', '.join(first)} {last} {end}" if first else str(end)
