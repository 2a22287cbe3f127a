"""One section of a cache: a one-dimensional .npy file, written piece by piece and read without parsing.

    byte 0                          128
         | header: dtype and length | data, little-endian ...

NumPy pads such a header to 128 bytes whatever the length, so it is written again once the length is known, and a reader
knows from the manifest what every byte of it must be.
"""

import io
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from flare_ds.checksums import file_sha256
from flare_ds.data.cache.format import ELSEWHERE, HEADER_BYTES, Section
from flare_ds.files import disk_errors, opening


class SectionWriter:
    """Writes a section piece by piece; no piece is kept.

    Args:
        path: the file, made at once.
        dtype: of its elements, stored little-endian.

    Raises:
        HostError: the disk is full or the path is not writable; so do all methods.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path, self.dtype, self.length = path, dtype.newbyteorder("<"), 0
        with disk_errors(path, elsewhere=ELSEWHERE):
            self._file = path.open("wb")
            self._file.write(header(self.dtype, 0))

    def append(self, array: np.ndarray) -> None:
        """Add elements, which must fit the section's dtype."""
        with disk_errors(self.path, elsewhere=ELSEWHERE):
            self._file.write(np.ascontiguousarray(array, self.dtype).data)
        self.length += len(array)

    def finish(self) -> Section:
        """Write the header, fsync and close the file."""
        with disk_errors(self.path, elsewhere=ELSEWHERE), self._file as file:
            file.seek(0)
            file.write(header(self.dtype, self.length))
            file.flush()
            os.fsync(file.fileno())
        size = HEADER_BYTES + self.length * self.dtype.itemsize
        return Section(dtype=self.dtype.str, shape=[self.length], bytes=size, sha256=file_sha256(self.path))

    def close(self) -> None:
        """Give the file up, finished or not."""
        with suppress(OSError):  # a full disk has been reported
            self._file.close()


def header(dtype: np.dtype, length: int) -> bytes:
    """The bytes before the data."""
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, {"descr": dtype.str, "fortran_order": False, "shape": (length,)})
    assert written.tell() == HEADER_BYTES
    return written.getvalue()


def map_array(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    """Map a one-dimensional .npy file into memory, read-only; nothing but the header is read.

    Raises:
        OSError: it cannot be opened.
        HostError: too many files are open; each that is mapped is (mmap keeps a descriptor of its own).
        ValueError: it holds another type or number of elements.
    """
    with opening(path), path.open("rb") as file:
        if file.read(HEADER_BYTES) != header(dtype, length):
            raise ValueError(f"its header does not say {dtype.str} {[length]}")
        mapped = np.memmap(file, dtype, "r", offset=HEADER_BYTES, shape=(length,))
    return mapped.view(np.ndarray)  # slicing np.memmap itself is several times slower
