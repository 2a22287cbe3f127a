"""Telling two models apart: what of a model decides the states it computes."""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoConfig

from flare_ds.checksums import canonical_json, directory_sha256
from flare_ds.exceptions import ConfigError
from flare_ds.models.names import is_path
from flare_ds.models.weight_files import weight_files

_SAMPLE_BYTES = 4096
_SAMPLES = 64
_OTHER_WEIGHTS = (".bin", ".pt", ".pth")
_OF_ITS_PLACE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Settings in config.json that say where a model came from, or who saved it."""


def base_fingerprint(name: str) -> str:
    """What tells a base from another wherever it lies: the commit of a hub model, or a checksum of a directory.

    Of a directory it is taken over its config.json, the sizes of its weight files, and some bytes of each of their
    tensors, so that it takes no longer for a large base: training that changed a matrix changed the middle of it.

    Args:
        name: directory of a saved model, or a hub name.

    Raises:
        ConfigError: there is no model of that name, or it cannot be read.
        CheckpointError: its index names files that are not there.
    """
    directory = Path(name)
    if not directory.is_dir():
        return _commit(name)
    checksum = hashlib.sha256()
    try:
        settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        checksum.update(canonical_json({key: settings[key] for key in settings if key not in _OF_ITS_PLACE}))
        for file in _read_files(directory):
            checksum.update(f"{file.name} {file.stat().st_size}\n".encode())
            for sample in _samples(file):
                checksum.update(sample)
    except (OSError, ValueError, TypeError, KeyError, struct.error) as error:
        raise ConfigError(
            f"cannot read the model.base={name!r}: {error}", fix="save it with save_pretrained"
        ) from error
    return checksum.hexdigest()


def _read_files(directory: Path) -> list[Path]:
    """The files transformers reads the weights from: others may lie beside them."""
    if any(directory.glob("*.safetensors")):
        return [directory / name for name in weight_files(directory)]
    return sorted(file for file in directory.iterdir() if file.suffix in _OTHER_WEIGHTS)


def _samples(path: Path) -> Iterator[bytes]:
    """The header of a safetensors file and the middle of each tensor; of any other file, bytes all along it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        middles = [size * place // _SAMPLES for place in range(_SAMPLES)]
        if path.suffix == ".safetensors":
            (length,) = struct.unpack("<Q", file.read(8))
            header = file.read(min(length, size))
            yield header
            tensors = [value for key, value in sorted(json.loads(header).items()) if key != "__metadata__"]
            middles = [8 + length + sum(tensor["data_offsets"]) // 2 for tensor in tensors]
        for middle in middles:
            file.seek(max(0, middle - _SAMPLE_BYTES // 2))
            yield file.read(_SAMPLE_BYTES)


def model_fingerprint(name: str) -> str:
    """The commit of a hub model, or one sha256 over the names and contents of a directory's own files.

    Contents, not sizes: two bases merged from adapters of different seeds differ in nothing else. That reads every
    weight once (about 1 GB a second).

    Args:
        name: directory of a saved model, or a hub name.

    Raises:
        ConfigError: there is no model of that name.
    """
    directory = Path(name)
    if directory.is_dir():
        return directory_sha256(directory)
    return _commit(name)


def _commit(name: str) -> str:
    if is_path(name):
        raise ConfigError(f"the model {name!r} is not a directory", fix="check the path")
    try:
        commit = getattr(AutoConfig.from_pretrained(name, trust_remote_code=False), "_commit_hash", None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the model {name!r}: {error}", fix="check the name") from error
    assert isinstance(commit, str), f"{name} came from neither a directory nor a hub"
    return commit
