"""The versions a result depends on, kept with every run."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "deepspeed", "transformers", "peft", "numpy")


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that compute."""
    from flare_ds import __version__

    return {
        "flare_ds": __version__,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
