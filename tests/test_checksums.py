"""Checksums of directories: by content, and a file that has not changed is read once."""

import hashlib
import os
from pathlib import Path

import pytest

from flare_ds import checksums
from flare_ds.checksums import directory_sha256, unchanged_sha256


def test_a_directory_is_told_by_the_names_and_contents_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"two")
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "below").mkdir()
    lines = "".join(
        f"{name} {hashlib.sha256(content).hexdigest()}\n" for name, content in (("a", b"one"), ("b", b"two"))
    )
    assert directory_sha256(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()


def test_a_file_is_read_again_once_it_was_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = checksums.file_sha256
    monkeypatch.setattr(checksums, "file_sha256", lambda path: read.append(path.name) or real(path))
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = directory_sha256(tmp_path)
    assert directory_sha256(tmp_path) == first and read == ["weights"]
    written = file.stat().st_mtime_ns
    file.write_bytes(b"two")
    os.utime(file, ns=(written, written + 1))
    assert directory_sha256(tmp_path) != first and read == ["weights"] * 2


def test_files_of_one_name_size_and_time_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to another working directory each."""
    found = []
    for content in (b"one", b"two"):
        place = tmp_path / content.decode()
        place.mkdir()
        monkeypatch.chdir(place)
        Path("weights").write_bytes(content)
        os.utime("weights", ns=(7, 7))
        found.append(unchanged_sha256(Path("weights")))
    assert found == [hashlib.sha256(content).hexdigest() for content in (b"one", b"two")]
