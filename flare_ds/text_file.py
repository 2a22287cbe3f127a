"""Reading a small text file that a person wrote, however their editor saved it."""

import codecs
from pathlib import Path

from flare_ds.exceptions import ConfigError

_MARKS = {  # that of UTF-32 before that of UTF-16, which it begins with
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_LARGEST = 2**20


def read_text(path: Path, *, named: str) -> str:
    """Read a file of UTF-8, or of UTF-16 or UTF-32 that says so by its first bytes (PowerShell writes UTF-16).

    Messages call it `named`, e.g. "the config run.yaml".

    Raises:
        ConfigError: it cannot be read, is in another encoding, or is too large to be settings.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {named}: {error.strerror}", fix="check the path") from error
    if len(content) > _LARGEST:
        raise ConfigError(f"{named} has more than {_LARGEST} bytes, so it holds no settings", fix="check the path")
    mark = next((mark for mark in _MARKS if content.startswith(mark)), b"")
    try:
        return content[len(mark) :].decode(_MARKS.get(mark, "utf-8"))
    except UnicodeDecodeError as error:
        raise _refusal(error, named) from error


def _refusal(error: UnicodeDecodeError, named: str) -> ConfigError:
    line = error.object[: error.start].decode(error.encoding, "replace").count("\n") + 1
    byte = error.object[error.start]
    return ConfigError(
        f"{named} is not {error.encoding.upper()}: byte 0x{byte:02x} in line {line} is not a valid character",
        fix="save it as UTF-8: in the editor, or iconv -f latin1 -t utf-8 OLD > NEW where it is Latin-1",
    )
