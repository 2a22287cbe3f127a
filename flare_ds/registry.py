"""Named choices: one small registry that answers a wrong name with the nearest right one."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from flare_ds.exceptions import ConfigError

T = TypeVar("T")


def suggestion(name: str, choices: Iterable[str]) -> str:
    """Say which choice was probably meant, and otherwise list them all."""
    names = sorted(choices)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    known = ", ".join(names)
    return f"did you mean {near[0]!r}? (known: {known})" if near else f"use one of: {known}"


class Registry(Generic[T]):
    """A mapping from names to things of one kind; `get` of an unknown name raises ConfigError."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def add(self, name: str, thing: T, *, replace: bool = False) -> T:
        """Register `thing` under `name`.

        Raises:
            ConfigError: the name is taken, and `replace` does not say that the new thing is meant.
        """
        if name in self._things and not replace:
            fix = "choose another name; or, as in a notebook's cell that is run again, say replace=True"
            raise ConfigError(f"{self.kind} {name!r} is registered already", fix=fix)
        self._things[name] = thing
        return thing

    def get(self, name: str) -> T:
        """Return the thing called `name`.

        Raises:
            ConfigError: nothing has that name; the message suggests the nearest.
        """
        if name not in self._things:
            raise ConfigError(f"unknown {self.kind} {name!r}", fix=suggestion(name, self._things))
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)
