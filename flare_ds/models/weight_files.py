"""Which files of a model's directory transformers reads its weights from, where more than one set is there."""

import json
from pathlib import Path
from typing import Any

from flare_ds.exceptions import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_files(directory: Path) -> list[str]:
    """Names of the files that transformers reads: one for all weights comes before an index of several.

    Raises:
        CheckpointError: there are none of that form, or the index names files that are not there.
    """
    if named := read_json(directory / "config.json").get("transformers_weights"):
        problem = f"{directory / 'config.json'} names a file of its own, {named!r}, as transformers_weights"
        raise CheckpointError(problem, fix="load the base and save it anew with save_pretrained")
    if (directory / SINGLE).is_file():
        return [SINGLE]
    if not (directory / INDEX).is_file():
        raise CheckpointError(f"{directory} holds no .safetensors files", fix="save the base with save_pretrained")
    files = sorted(set(read_json(directory / INDEX)["weight_map"].values()))
    if gone := [file for file in files if not (directory / file).is_file()]:
        raise CheckpointError(
            f"{directory / INDEX} names {len(gone)} files that are not there, the first of them {gone[0]}",
            fix="put them back; if the index is left over from other weights, delete it and save the base anew",
        )
    return files


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))
