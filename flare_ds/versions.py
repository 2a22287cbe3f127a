"""The versions a result depends on, kept with every run."""

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "deepspeed", "transformers", "peft", "numpy")


def versions() -> dict[str, str]:
    """Versions of this package and its code, of Python and the libraries that compute."""
    from flare_ds import __version__

    return {
        "flare_ds": __version__,
        "code": code(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


@cache
def code() -> str:
    """What tells the code of this package apart, which one version has several of: its modules' sha256, shortened.

    Nothing is looked up by it: a changed line makes no cache another one.
    """
    package, sha256 = Path(__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if "/." not in f"/{name}":  # hidden is an editor's: a lock, or a copy
            sha256.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return sha256.hexdigest()[:12]


def code_of(kept: Any) -> str | None:
    """The code that versions name which were kept; None: an earlier version kept them, or they are damaged."""
    found = kept.get("code") if isinstance(kept, dict) else None
    return found if isinstance(found, str) else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
