"""The unfinished part of a translation: batches of segments, each a file of its own once it is translated.

    translations/.eng_Latn-por_Latn-1f0c...d2.partial/batches/<checksum of the segments>.json

A batch is found by what is in it, and its file is there only when it is whole, so a run that was killed is taken up
where it was, by any number of workers.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flare_ds.exceptions import DataError
from flare_ds.files import write_text
from flare_ds.json_text import parse_json
from flare_ds.translation.engines import Direction, Said

_PROBES = 8


@dataclass(frozen=True)
class Batch:
    """Segments that are translated at once.

    Attributes:
        direction: from which language into which.
        segments: what is translated.
        path: where the translations are, once they are there.
    """

    direction: Direction
    segments: tuple[str, ...]
    path: Path

    def write(self, translations: Sequence[Said | None]) -> None:
        """Keep the translations.

        Raises:
            HostError: the disk is full or not writable.
        """
        assert len(translations) == len(self.segments)
        write_text(self.path, json.dumps(translations, ensure_ascii=False))

    def read(self) -> Iterator[tuple[str, Said | None]]:
        """Each segment and its translation.

        Raises:
            DataError: the file was changed.
        """
        try:
            translations = parse_json(self.path.read_bytes())
            if not isinstance(translations, list) or len(translations) != len(self.segments):
                raise ValueError(f"it holds no list of {len(self.segments)} translations")
            said = [value and _said(value) for value in translations]
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"cannot read {self.path}: {error}", fix=f"rm {self.path}; run it again") from error
        return zip(self.segments, said, strict=True)


def _said(value: Any) -> Said:
    """One translation as it was kept."""
    text, cut_off = value
    if not isinstance(text, str) or not isinstance(cut_off, bool):
        raise ValueError("it holds something else than texts")
    return Said(text, cut_off)


def make_batches(segments: Iterable[str], size: int, direction: Direction, directory: Path) -> list[Batch]:
    """Cut segments into batches of like length, the longest first: what is too much for the memory shows at once.

    Args:
        segments: in any order; each is translated once, however often it occurs.
        size: segments of a batch.
        direction: from which language into which.
        directory: the batches' files go into.
    """
    unique = sorted(set(segments), key=lambda segment: (-len(segment), segment))
    cut = (tuple(unique[start : start + size]) for start in range(0, len(unique), size))
    return [Batch(direction, batch, directory / f"{_checksum(batch)}.json") for batch in cut]


def probes_of(batches: Iterable[Batch]) -> dict[Direction, list[str]]:
    """A few sentences of each direction, from the longest to the shortest."""
    of: dict[Direction, list[Batch]] = {}
    for batch in batches:
        of.setdefault(batch.direction, []).append(batch)
    return {
        direction: [batch.segments[0] for batch in some[:: -(-len(some) // _PROBES)]] for direction, some in of.items()
    }


def _checksum(segments: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(segments).encode()).hexdigest()[:32]
