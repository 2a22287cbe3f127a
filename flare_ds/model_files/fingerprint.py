"""Telling two models apart, wherever they lie: the one way to know a base, an MT encoder, a translation model."""

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from flare_ds.checksums import canonical_json
from flare_ds.exceptions import CheckpointError, ConfigError
from flare_ds.failures import warn
from flare_ds.files import readable_again
from flare_ds.model_files.hub import UNREACHED, commit
from flare_ds.model_files.names import is_path
from flare_ds.model_files.weight_files import weight_files
from flare_ds.texts import one_line

_SAMPLE_BYTES = 4096
_SAMPLES = 1024
"""Of a file that does not say where its tensors are."""
_OTHER_WEIGHTS = (".bin", ".pt", ".pth")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OF_ITS_PLACE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Settings that say where a model came from, or who saved it."""


def model_fingerprint(name: str) -> str:
    """What tells a model from another wherever it lies: the commit of a hub model, or a checksum of a directory.

    Of a directory it is taken over its settings, the sizes of its weight files, and some bytes of each of their
    tensors, so that it takes no longer for a large model: training that changed a matrix changed the middle of it.
    A process computes it once, as long as the files stay as they are.

    Raises:
        ConfigError: there is no model of that name, or it cannot be read.
        CheckpointError: its index names files that are not there.
    """
    directory = Path(name)
    if not directory.is_dir():
        return _commit(name)
    try:
        return _of_files(directory.absolute(), file_states(directory))
    except (OSError, ValueError, TypeError, KeyError, struct.error) as error:
        fix = readable_again(error, damaged="save it with save_pretrained")
        raise ConfigError(f"cannot read the model {name!r}: {error}", fix=fix) from error


def is_commit(fingerprint: str | None) -> bool:
    """Whether a fingerprint is the commit of a hub's model."""
    return fingerprint is not None and _COMMIT.fullmatch(fingerprint) is not None


def are_different(known: str, now: str) -> bool:
    """Whether two fingerprints are of two models; of a commit and a directory's contents nobody can tell."""
    return known != now and is_commit(known) == is_commit(now)


def check_same_base(known: str | None, base: str, *, what: str) -> None:
    """Refuse another base than something was made with; one that only lies elsewhere is the same.

    Args:
        known: fingerprint of that base; None: it was not kept.
        base: directory or hub name of the one that is to be used.
        what: was made with it, as the beginning of a sentence: "PATH was trained".

    Raises:
        CheckpointError: it is another.
    """
    if known is None or known == (now := model_fingerprint(base)):
        return
    if is_commit(known) and not is_commit(now):  # fetched, and maybe moved to where no hub is
        _warn_once(
            f"{what} on commit {known} of the hub; it is unknown whether the directory model.base={base!r} holds that"
        )
        return
    how, fix = "its contents differ", "set model.base to the directory of that base"
    if is_commit(known):
        how = f"that was commit {known}, this is {now}"
        fix = f"fetch it (hf download NAME --revision {known} --local-dir DIRECTORY), and set model.base=DIRECTORY"
    raise CheckpointError(f"{what} on another base than model.base={base!r}: {how}", fix=fix)


@lru_cache(maxsize=64)
def _warn_once(told: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        warn(told)


def file_states(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of a directory's own files, which show a change; none, where there is no directory."""
    files = sorted(file for file in directory.iterdir() if file.is_file()) if directory.is_dir() else []
    return tuple((file.name, (state := file.stat()).st_size, state.st_mtime_ns) for file in files)


@lru_cache(maxsize=64)
def _of_files(directory: Path, _states: tuple[tuple[str, int, int], ...]) -> str:
    """The checksum of a directory while its files have these sizes and times."""
    checksum = hashlib.sha256()
    checksum.update(_settings(directory / "config.json"))
    if (generation := directory / "generation_config.json").is_file():
        checksum.update(_settings(generation))
    for file in _read_files(directory):
        checksum.update(f"{file.name} {file.stat().st_size}\n".encode())
        for sample in _samples(file):
            checksum.update(sample)
    return checksum.hexdigest()


def _settings(file: Path) -> bytes:
    settings = json.loads(file.read_text(encoding="utf-8"))
    return canonical_json({key: settings[key] for key in settings if key not in _OF_ITS_PLACE})


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


def _commit(name: str) -> str:
    if is_path(name):
        raise ConfigError(f"the model {name!r} is not a directory", fix="check the path")
    try:
        return commit(name)
    except OSError as error:
        said = one_line(str(error)).rstrip(".")
        raise ConfigError(f"cannot read the model {name!r}: {said}", fix=UNREACHED) from error
