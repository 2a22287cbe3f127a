"""How the packages of an extra are installed: by a command that works in a clone and beside an installed wheel alike.

The extras are those of setup.py; `flare_ds` itself is on no package index, so its name cannot be in that command.
"""

import shlex
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement


def install(extra: str) -> str:
    """The command that installs an extra, e.g. `pip install 'lm-eval>=0.4.13'`."""
    try:
        all_requirements = [Requirement(line) for line in requires("flare_ds") or []]
    except PackageNotFoundError:  # the sources are on the path, and were never installed
        return f"pip install -e '.[{extra}]' in the clone of flare_ds"
    added = [one for one in all_requirements if one.marker and one.marker.evaluate({"extra": extra})]
    return shlex.join(["pip", "install", *(f"{one.name}{one.specifier}" for one in added)])
