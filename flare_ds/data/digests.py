"""Checksums of what rows say: by them rows are split and ordered, and found again where they should not be.

    order     of the row's normalised text, by which rows are ordered
    text      the same of the fields that the prompt says, but rows are equal only if each of these is
    passage   of the normalised long field, which several rows may be about
    percent   what the normalised fields that decide a split are among all such texts, from 0 to 99

Each checksum is the first 16 bytes of a sha256; none, that is zeros, where there is no text. Rows that say nothing in
the fields that they might share have nothing in common: there the whole row counts.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from flare_ds.tasks.base import Task

DIGEST = np.dtype("S16")


def row_keys(fields: Mapping[str, str], task: Task, said: Sequence[str]) -> tuple[bytes, bytes, bytes, int]:
    """Order, text, passage and percent of a row; what the task does not name is not read, so it tells no rows apart.

    Args:
        fields: of the row.
        task: whose it is.
        said: those of its fields that the prompt says.
    """
    one, whole = len(task.fields) == 1, tuple(task.fields) == tuple(task.split_fields)
    order = text_digest(fields[field] for field in task.fields)
    text = order if one else row_digest(fields[field] for field in said)
    passage = order if one else text_digest([fields[task.long_field]])
    split = order if whole else text_digest(fields[field] for field in task.split_fields)
    if not any(split):
        split = text
    return order, text, passage, int.from_bytes(split[:8], "big") * 100 >> 64


def cluster_of(fields: Mapping[str, str], task: Task) -> int:
    """The number of the rows that a row was drawn with, from what they share: 64 bits, signed."""
    shared = text_digest(fields[field] for field in task.cluster_fields or (task.long_field,))
    if not any(shared):
        shared = row_digest(fields[field] for field in task.fields)
    return int.from_bytes(shared[:8], "little", signed=True)


def normalise(text: str) -> str:
    """The form in which two texts count as the same: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_digest(texts: Iterable[str]) -> bytes:
    """The checksum of some texts as one, normalised."""
    return _digest(normalise("\n".join(texts)))


def row_digest(texts: Iterable[str]) -> bytes:
    """The checksum of some texts, each normalised, as a row of them."""
    row = [normalise(text) for text in texts]
    # A separator that no normalised text holds: it is white space.
    return _digest("\x1f".join(row) if any(row) else "")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()[: DIGEST.itemsize] if text else bytes(DIGEST.itemsize)


def among(digests: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Which rows have a text that was seen; none is the text of no row.

    Args:
        digests: of the texts of each row: [rows, texts].
        seen: of texts, in any shape.

    Returns:
        bool [rows].
    """
    if seen.size > digests.size:  # the second is hashed, which takes a hundred bytes each
        seen = seen.ravel()[_is_in(seen, digests)]
    return (_is_in(digests, seen).reshape(digests.shape) & (digests != b"")).any(axis=1)


def _is_in(digests: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Which of some digests are among others: bool, flat."""
    from pyarrow.compute import is_in

    found: np.ndarray = is_in(arrow(digests), value_set=arrow(seen)).to_numpy(zero_copy_only=False)
    return found


def arrow(digests: np.ndarray) -> pa.Array:
    """Checksums as an Arrow array, one behind another."""
    held = np.ascontiguousarray(digests)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(DIGEST.itemsize), held.size, [None, pa.py_buffer(held)])
