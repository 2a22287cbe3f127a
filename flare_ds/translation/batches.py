"""The unfinished part of a translation: batches of segments, each a file of its own once it is translated.

    translations/.eng_Latn-por_Latn-1f0c...d2.partial/said/<checksum of the segments>.json
        [[segment, [translation, cut_off, unknown] or null], ...]

A file says what its segments are, and is there only when it is whole, so a run that was killed is taken up where it
was, by any number of workers, in batches of any size.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flare_ds.exceptions import DataError
from flare_ds.files import reading, write_text
from flare_ds.json_text import parse_json
from flare_ds.translation.engines import Direction, Said

_PROBES = 8


@dataclass(frozen=True)
class Batch:
    """Segments that are translated at once; the file of their translations goes into `directory`."""

    direction: Direction
    segments: tuple[str, ...]
    directory: Path

    def write(self, translations: Sequence[Said | None]) -> None:
        """Keep the translations.

        Raises:
            HostError: the disk is full or not writable.
        """
        pairs = list(zip(self.segments, translations, strict=True))
        name = hashlib.sha256(json.dumps(self.segments).encode()).hexdigest()[:32]
        write_text(self.directory / f"{name}.json", json.dumps(pairs, ensure_ascii=False))


def said_so_far(directory: Path) -> dict[str, Said | None]:
    """What each segment was translated into, by the batches that are finished.

    Raises:
        DataError: a file was changed, or cannot be read.
        HostError: too many files are open.
    """
    said: dict[str, Said | None] = {}
    for path in sorted(directory.glob("[0-9a-f]*.json")):
        with reading(path, DataError, damaged=f"rm {shlex.quote(str(path))}; run it again"):
            said.update(_pair(*pair) for pair in parse_json(path.read_bytes()))
    return said


def _pair(segment: Any, translation: Any) -> tuple[str, Said | None]:
    """A segment and its translation as they were kept."""
    said = None if translation is None else Said(*translation)
    if not isinstance(segment, str) or (said and [type(value) for value in said] != [str, bool, bool]):
        raise ValueError("it holds something else than segments and what they were translated into")
    return segment, said


def in_order(segments: Sequence[str]) -> list[str]:
    """Each segment once, the longest first: those of a batch are of like length, and too much for the memory shows."""
    return sorted(set(segments), key=lambda segment: (-len(segment), segment))


def make_batches(
    ordered: Sequence[str], said: Mapping[str, Said | None], size: int, direction: Direction, directory: Path
) -> list[Batch]:
    """Cut what is not translated yet (`said_so_far`) of all segments (`in_order`) into batches of so many."""
    todo = [segment for segment in ordered if segment not in said]
    return [Batch(direction, tuple(todo[start : start + size]), directory) for start in range(0, len(todo), size)]


def probes_of(ordered: Sequence[str]) -> Sequence[str]:
    """A few segments, from the longest to the shortest."""
    return ordered[:: -(-len(ordered) // _PROBES) or 1]
