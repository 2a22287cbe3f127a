"""Which tests start processes of their own: told from their code, so that no mark can be forgotten.

A test does when it, its fixtures, or a function or class of the tests that these name, names `subprocess`
or a context of `multiprocessing`.
"""

import subprocess
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from types import CodeType, FunctionType

import pytest


def launches(item: pytest.Function) -> bool:
    """Whether a test starts processes."""
    fixtures = [fixture for found in item._fixtureinfo.name2fixturedefs.values() for fixture in found]
    return _reaches([item.function, *(fixture.func for fixture in fixtures)])


def _reaches(functions: list[object]) -> bool:
    seen: set[int] = set()
    while functions:
        found = functions.pop()
        if found is subprocess or found is subprocess.Popen or isinstance(found, BaseContext):
            return True
        if id(found) in seen or not str(getattr(found, "__module__", "")).startswith("tests."):
            continue
        seen.add(id(found))
        if isinstance(found, type):
            functions += vars(found).values()
        if isinstance(found, FunctionType):
            functions += [found.__globals__[name] for name in _names(found.__code__) if name in found.__globals__]
    return False


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
