"""`fetched.json`: what a fetched directory was made from, and what is in it.

A record of old says nothing of the contents and has no checksum; it is read all the same.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flare_ds.exceptions import FetchError
from flare_ds.fetch.sources import DATA, MODELS, Source
from flare_ds.files import settle
from flare_ds.kept import Kind
from flare_ds.published import FileRecord, check_sizes, read_manifest, write_manifest

RECORD = "fetched.json"
_AGAIN = "remove it (`flare-ds cache rm DIR`) and fetch it again (`flare-ds fetch`)"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    licence: str
    files: dict[str, str]
    contents: dict[str, FileRecord] | None = None


def seal(directory: Path, source: Source) -> None:
    """Make the contents durable, and say what they are.

    Raises:
        OSError: the disk is full or not writable.
    """
    settle(directory)
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    contents = {str(path.relative_to(directory)): FileRecord.of(path).model_dump() for path in files}
    write_manifest(directory / RECORD, source.record() | {"contents": contents})


def is_of(source: Source, directory: Path) -> bool:
    """Whether a directory was made from these very files, and still holds what was made, as far as sizes tell."""
    try:
        check_source(source, directory)
    except FetchError:
        return False
    return True


def check_source(source: Source, directory: Path) -> None:
    """Refuse what was not made from these very files, or lacks some of what was made.

    Raises:
        FetchError: it was not, or it does, or its record is damaged.
    """
    record = _read(directory)
    if record.model_dump(exclude={"contents"}) != source.record():
        raise FetchError(f"{directory} was made from other files than {source.name} is", fix=_AGAIN)
    try:
        check_sizes(directory, record.contents or {})
    except ValueError as error:
        raise FetchError(str(error), fix=_AGAIN) from error


def _read(directory: Path) -> _Record:
    try:
        return read_manifest(directory / RECORD, _Record, unsigned=True)
    except (OSError, ValueError) as error:
        raise FetchError(f"{directory} holds nothing that was fetched: {error}", fix=_AGAIN) from error


FETCHED = Kind(
    name="fetched",
    manifest=RECORD,
    is_manifest=lambda content: {"licence", "files"} <= content.keys(),
    file="",
    files=lambda directory: _read(directory).contents or {},
    damaged=lambda directory, why: FetchError(str(why), fix=_AGAIN),
    about=lambda directory: (_read(directory).name, "", ""),
    names=lambda: [*MODELS, *DATA],
)
