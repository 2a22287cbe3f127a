"""Which files of a model's directory transformers reads its weights from, where more than one set is there."""

from pathlib import Path
from typing import Any

from flare_ds.exceptions import CheckpointError
from flare_ds.json_text import parse_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_files(directory: Path) -> list[str]:
    """Names of the files that transformers reads: one for all weights comes before an index of several.

    Raises:
        CheckpointError: there are none of that form, or the index names files that are not there.
        ValueError: a file of JSON is damaged, or names what it must not.
    """
    if named := read_json(directory / "config.json").get("transformers_weights"):
        problem = f"{directory / 'config.json'} names a file of its own, {named!r}, as transformers_weights"
        raise CheckpointError(problem, fix="load the base and save it anew with save_pretrained")
    if (directory / SINGLE).is_file():
        return [SINGLE]
    if not (directory / INDEX).is_file():
        raise CheckpointError(f"{directory} holds no .safetensors files", fix="save the base with save_pretrained")
    files = sorted({_plain_name(file) for file in _index(directory).values()})
    if gone := [file for file in files if not (directory / file).is_file()]:
        raise CheckpointError(
            f"{directory / INDEX} names {len(gone)} files that are not there, the first of them {gone[0]}",
            fix="put them back; if the index is left over from other weights, delete it and save the base anew",
        )
    return files


def _index(directory: Path) -> dict[str, Any]:
    """Which file holds each weight, as the base's index says; a base may come from anybody."""
    found = read_json(directory / INDEX).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{INDEX} names no files")
    return found


def _plain_name(file: Any) -> str:
    """The name of a weight file; one that leads to another directory would be written there, too."""
    if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
        raise ValueError(f"{INDEX} names the file {file!r}")
    return file


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    return parse_object(path.read_bytes())
