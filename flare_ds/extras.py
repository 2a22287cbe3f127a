"""How the packages of an extra are installed: by a command that works in a clone and beside an installed wheel alike.

The extras are those of setup.py; `flare_ds` itself is on no package index, so its name cannot be in that command.
"""

import importlib.util
import shlex
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement


def install(extra: str) -> str:
    """The command that installs an extra, e.g. `pip install 'bitsandbytes>=0.50'`."""
    added = _packages(extra)
    if not added:
        return f"pip install -e '.[{extra}]' in the clone of flare_ds"
    return shlex.join(["pip", "install", *(f"{one.name}{one.specifier}" for one in added)])


def lacking(extra: str, module: str) -> str:
    """What of an extra is not here in a version that works, in words; empty: nothing.

    Args:
        extra: its name; another name has no versions to look at.
        module: what it brings, by the name that it is imported by.
    """
    if importlib.util.find_spec(module) is None:
        return f"{module}, which is not installed"
    unfit = [(one, _unfit(one)) for one in _packages(extra)]
    return "; ".join(f"{one.name}{one.specifier}, and {found} is installed" for one, found in unfit if found)


@cache
def _packages(extra: str) -> list[Requirement]:
    """What it brings; none where the sources are on the path, and were never installed.

    Looked up once: it is asked of each of a thousand cells.
    """
    try:
        all_requirements = [Requirement(line) for line in requires("flare_ds") or []]
    except PackageNotFoundError:
        return []
    return [one for one in all_requirements if one.marker and one.marker.evaluate({"extra": extra})]


def _unfit(wanted: Requirement) -> str:
    """The version that is here, where it is not within bounds."""
    with suppress(PackageNotFoundError):  # under another name, then: its versions are not these
        found = version(wanted.name)
        return "" if wanted.specifier.contains(found, prereleases=True) else found
    return ""
