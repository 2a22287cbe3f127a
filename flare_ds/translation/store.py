"""Finished translations on disk, found by what was translated and how, so that every config with these rows shares one.

    translations/eng_Latn-por_Latn-1f0c...d2/
        rows.jsonl       a line for each row, in their order: [fields, [[answer, start], ...], marks]; null: it failed
        manifest.json    what the key was made of, checksums, the quality report

The directory gets its name when it is whole. Ids and labels are not in it: they are the rows' own.
"""

import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flare_ds import published
from flare_ds.checksums import canonical_json, json_sha256
from flare_ds.config import TranslateConfig
from flare_ds.exceptions import DataError
from flare_ds.files import disk_errors, opening, readable_again, sync
from flare_ds.json_text import parse_json
from flare_ds.kept import About, Kind
from flare_ds.tasks.base import Answer, Row
from flare_ds.translation.engines import ENGINES
from flare_ds.translation.job import TranslationJob
from flare_ds.translation.quality import Report

FORMAT_VERSION = 2
"""Raised whenever the same rows and engine would give another translation: other segments, other marks."""
ROWS, MANIFEST = "rows.jsonl", "manifest.json"
ELSEWHERE = "set translate.directory to a directory you may write in"
_COMMAND = "flare-ds translate CONFIG"


class Manifest(BaseModel):
    """Everything about a translation but its texts; `fields` are what the key was made of."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    fields: dict[str, Any]
    rows_bytes: published.Count
    rows_sha256: str
    report: Report

    @property
    def files(self) -> dict[str, published.FileRecord]:
        """What is beside it."""
        return {ROWS: published.FileRecord(bytes=self.rows_bytes, sha256=self.rows_sha256)}


def key_fields(job: TranslationJob, translate: TranslateConfig) -> dict[str, Any]:
    """Collect all that a translation depends on.

    Raises:
        ConfigError: the engine does not know the languages, or there is no such model.
        HostError: this machine lacks what the engine needs.
    """
    texts, has_answers = hashlib.sha256(), False
    for row in job.rows:
        has_answers = has_answers or bool(row.answers)
        texts.update(canonical_json([dict(row.fields), [[answer.text, answer.start] for answer in row.answers]]))
    return {
        "format_version": FORMAT_VERSION,
        **job.direction._asdict(),
        "rows": len(job.rows),
        "rows_sha256": texts.hexdigest(),
        "long_field": job.long_field,
        **({"held_out": True} if job.held_out and has_answers else {}),
        "engine": translate.engine,
        **ENGINES.get(translate.engine).identity(translate, job.direction),
    }


def place_of(fields: dict[str, Any], translate: TranslateConfig) -> Path:
    """The directory of the translation with these key fields."""
    key = json_sha256(fields)[:16]
    return Path(translate.directory) / f"{fields['from_language']}-{fields['to_language']}-{key}"


def find_translation(job: TranslationJob, translate: TranslateConfig) -> Path:
    """The directory of the finished translation of a job.

    Raises:
        DataError: there is none yet.
        ConfigError: see `key_fields`.
        HostError: see `key_fields`.
    """
    directory = place_of(key_fields(job, translate), translate)
    if not directory.exists():
        problem = f"the {job.split} rows are not translated yet ({job.direction}): no {directory}"
        raise DataError(problem, fix=_COMMAND)
    published.mark_used(directory)
    return directory


def read_translation(directory: Path, rows: Sequence[Row]) -> Iterator[Row | None]:
    """Read the finished translation of some rows, each as it is asked for, once.

    Yields:
        The translation of each row; None: it failed. An answer that was not found again has start None.

    Raises:
        DataError: it cannot be read; or it is damaged, which is noticed at the latest behind the last row.
        HostError: too many files are open.
    """
    manifest = read_manifest(directory)
    checksum, number = hashlib.sha256(), 0
    try:
        with opening(directory / ROWS), (directory / ROWS).open("rb") as file:
            for number, line in enumerate(file, start=1):
                checksum.update(line)
                if number <= len(rows):
                    yield _row(parse_json(line), rows[number - 1])
    except OSError as error:
        raise damaged(directory, f"{ROWS}: {error.strerror}", error) from error
    except (ValueError, TypeError) as error:
        raise damaged(directory, f"row {number - 1} of {ROWS}: {error}") from error
    if checksum.hexdigest() != manifest.rows_sha256:
        raise damaged(directory, f"the checksum of {ROWS} does not match ({manifest.rows_bytes} bytes expected)")
    if number != len(rows):
        raise damaged(directory, f"{ROWS} has {number} rows, not {len(rows)}")


def _row(line: Any, row: Row) -> Row | None:
    """What a line of rows.jsonl makes of its row.

    Raises:
        ValueError: it is no translation of that row; so does TypeError.
    """
    if line is None:
        return None
    fields, answers, marks = line
    if not isinstance(fields, dict) or fields.keys() != row.fields.keys() or len(answers) != len(row.answers):
        raise ValueError("it has other fields or answers than the row that was translated")
    texts = [*fields.values(), *(text for text, _ in answers), *marks]
    places = [place for _, place in answers if place is not None]
    if not (isinstance(answers, list) and isinstance(marks, list)):
        raise ValueError("its answers or its marks are no list")
    if not all(isinstance(text, str) for text in texts) or not all(type(place) is int for place in places):
        raise ValueError("a text is no text, or a place no number")
    longest = max(map(len, fields.values()))
    if not all(0 <= place <= longest for place in places):
        raise ValueError("an answer stands outside of its text")
    told = tuple(Answer(text, place) for text, place in answers)
    return replace(row, fields=fields, answers=told, marks=tuple(marks))


def write_rows(path: Path, rows: Iterable[Row | None]) -> tuple[int, str]:
    """Write and sync rows.jsonl; returns its size and checksum.

    Raises:
        HostError: the disk is full or not writable.
    """
    checksum = hashlib.sha256()
    with disk_errors(path, elsewhere=ELSEWHERE), path.open("wb") as file:
        for row in rows:
            answers = [] if row is None else [[answer.text, answer.start] for answer in row.answers]
            value = None if row is None else [dict(row.fields), answers, list(row.marks)]
            line = json.dumps(value, ensure_ascii=False).encode() + b"\n"
            checksum.update(line)
            file.write(line)
        file.flush()
        sync(path)
        return file.tell(), checksum.hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write and sync manifest.json.

    Raises:
        HostError: the disk is full or not writable.
    """
    path = directory / MANIFEST
    with disk_errors(path, elsewhere=ELSEWHERE):
        published.write_manifest(path, manifest.model_dump(mode="json"))


def read_manifest(directory: Path) -> Manifest:
    """Read and check manifest.json.

    Raises:
        DataError: it is missing or damaged, or cannot be read.
        HostError: too many files are open.
    """
    try:
        return published.read_manifest(directory / MANIFEST, Manifest)
    except OSError as error:
        raise damaged(directory, f"{MANIFEST}: {error.strerror}", error) from error
    except ValueError as error:  # pydantic's are, too
        raise damaged(directory, f"{MANIFEST}: {type(error).__name__}: {error}") from error


def damaged(directory: Path, problem: str, met: OSError | None = None) -> DataError:
    """What to raise about a translation that cannot be used; to make it anew may take days.

    Args:
        directory: of it.
        problem: what is wrong with it.
        met: why a file of it could not be read, if it could not.
    """
    anew = f"rm -r {shlex.quote(str(directory))}; {_COMMAND}"
    fix = anew if met is None else readable_again(met, damaged=anew)
    what = "is damaged" if fix == anew else "cannot be read"
    return DataError(f"the translation {directory} {what}: {problem}", fix=fix)


def _about(directory: Path) -> About:
    fields = read_manifest(directory).fields
    return "", f"{fields.get('from_language')} → {fields.get('to_language')}", str(fields.get("rows", ""))


TRANSLATION = Kind(
    name="translation",
    manifest=MANIFEST,
    is_manifest=lambda content: {"rows_sha256", "report"} <= content.keys(),
    file=ROWS,
    files=lambda directory: read_manifest(directory).files,
    damaged=lambda directory, why: damaged(directory, str(why)),
    about=_about,
)
