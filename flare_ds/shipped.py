"""The DeepSpeed settings that come with flare_ds, by name: `zero3_bf16` is the file ds_configs/zero3_bf16.json.

The folder lies beside the package in a clone; setup.py puts it inside the package that is installed.
"""

from pathlib import Path

from flare_ds.exceptions import ConfigError
from flare_ds.registry import suggestion

AUTO = "auto"
"""In place of a name: the one that fits the device and `model.dtype`, chosen where the run starts."""

_PACKAGE = Path(__file__).parent
_PLACES = (_PACKAGE / "ds_configs", _PACKAGE.parent / "ds_configs")


def is_name(text: str) -> bool:
    """Whether `deepspeed` names what comes with flare_ds, and not a file of the user's own."""
    return "/" not in text and not text.endswith(".json")


def shipped_names() -> list[str]:
    """The names there are, without `auto`."""
    return sorted(file.stem for file in _directory().glob("*.json"))


def shipped_file(name: str) -> Path:
    """The file of a name.

    Raises:
        ConfigError: there is none of that name; the message lists all.
    """
    if name not in shipped_names():
        known = suggestion(name, [AUTO, *shipped_names()])
        problem = f"deepspeed={name!r} is none of the DeepSpeed settings that come with flare_ds"
        raise ConfigError(problem, fix=f"{known}, or a path with a / or .json in it")
    return _directory() / f"{name}.json"


def _directory() -> Path:
    found = next((place for place in _PLACES if place.is_dir()), None)
    assert found is not None, f"the package holds no ds_configs: {_PLACES}"
    return found
