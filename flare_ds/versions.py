"""The versions a result depends on, kept with every run."""

import platform
from importlib.metadata import version

PACKAGES = ("torch", "deepspeed", "transformers", "peft", "numpy")


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that compute."""
    from flare_ds import __version__

    return {
        "flare_ds": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }
