"""Reading a YAML file that holds settings."""

from pathlib import Path
from typing import Any

import yaml

from flare_ds.exceptions import ConfigError


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}", fix="check the path") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}", fix="mend the line named above") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings (found {settings!r})", fix="start from launchers/configs/")
    return settings
