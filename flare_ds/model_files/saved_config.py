"""What a saved model says of itself, read without transformers."""

from pathlib import Path
from typing import Any

from flare_ds.json_text import parse_object
from flare_ds.text_file import read_text


def saved_config(name: str) -> dict[str, Any]:
    """The settings in the `config.json` of a model that lies here; empty where there is none that can be read."""
    file = Path(name) / "config.json"
    try:
        return parse_object(read_text(file, named=str(file))) if file.is_file() else {}
    except ValueError:
        return {}
