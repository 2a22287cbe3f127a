"""What is wrong with settings, in plain words: pydantic's are of Python's types, once for each that it could be.

evaluate.batch_size='big' is neither a whole number nor auto
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flare_ds.exceptions import ConfigError, FlareError, together
from flare_ds.overrides import keys_of
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
_ELSEWHERE = {"modules_to_save": "train_head", "rank": "r", "lora_r": "r"}
"""Settings by the names that others give them, where the nearest of ours is another one."""
_BOUNDS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}


def explain(error: ValidationError, model: type[BaseModel], origin: str, section: str = "") -> FlareError:
    """All problems of a validation, said in our words.

    Args:
        error: what pydantic found.
        model: the model that was to be built, whose keys are suggested.
        origin: the file the settings come from.
        section: that of the file the settings are in, with a dot behind it; empty: they are all it holds.
    """
    problems = (_problems(name, details, model, origin, section) for name, details in refused(error).items())
    return together([problem for of_setting in problems for problem in of_setting], origin)


def _problems(
    path: tuple[str, ...], refusals: Sequence[Any], model: type[BaseModel], origin: str, section: str
) -> Iterator[ConfigError]:
    """What is wrong with one setting; where its types differ in what they refuse, in one sentence."""
    details, name = refusals[0], ".".join(path)
    value, kind = f"{details['input']!r:.200}", details["type"]
    if kind == "extra_forbidden":
        ours = _ELSEWHERE.get(path[-1], path[-1])
        yield ConfigError(f"unknown setting {name!r} in {origin}", fix=suggestion(ours, keys_of(model, path[:-1])))
    elif kind == "missing":
        yield ConfigError(f"setting {name!r} is missing in {origin}", fix=f"add it, or pass {section}{name}=VALUE")
    elif kind == "value_error":
        for told in details["ctx"]["error"].args:
            problem, _, fix = told.rpartition("; ")
            where = "" if problem.startswith(name) else f"setting {name}: "
            yield ConfigError(f"{where}{problem} (in {origin})", fix=fix)
    elif kind == "model_type":
        problem = f"setting {name}={value} in {origin} is not a section"
        yield ConfigError(problem, fix=f"write the settings of {name} below it, indented, or leave it out")
    elif kind == "string_type" and isinstance(details["input"], bool | int | float):
        yield ConfigError(f"setting {name}={value} in {origin} is not a text", fix=f'put it in quotes: {name}: "..."')
    else:
        problem, fix = worded(name, refusals, origin=origin)
        yield ConfigError(f"setting {problem}", fix=fix)


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
    """What is wrong with a value, which each type that it could have refuses, and what to do."""
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
