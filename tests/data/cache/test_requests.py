"""Which cache answered some settings before: found by its name, without a look at others; nothing is hashed twice."""

import hashlib
from pathlib import Path

import pytest

from flare_ds.config import Config
from flare_ds.data.cache import prepare_cache, reader
from flare_ds.data.cache.requests import remembered, stored
from flare_ds.published import build_name
from tests.data.cache.moods import moods_config, word_tokenizer


@pytest.fixture
def made(root: Path) -> dict[Path, Config]:
    """Three caches, and what they were built for."""
    word_tokenizer().save_pretrained(root / "model")
    configs = [moods_config(root, target_language=language) for language in ("de", "fr", "pl")]
    configs = [
        config.model_copy(update={"model": config.model.model_copy(update={"base": str(root / "model")})})
        for config in configs
    ]
    return {prepare_cache(config, word_tokenizer()): config for config in configs}


def test_one_manifest_is_read_to_find_a_cache(made: dict[Path, Config], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = reader.read_manifest
    monkeypatch.setattr(reader, "read_manifest", lambda path: read.append(path) or real(path))
    for path, config in made.items():
        cache = remembered(config)
        assert cache is not None and cache.path == path
    assert read == list(made)


def test_the_files_of_a_tokenizer_are_hashed_once(made: dict[Path, Config], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, digest: read.append(file.name) or real(file, digest))
    for config in (*made.values(), *made.values()):
        assert remembered(config) is not None
    assert len(read) == len(set(read))


def test_a_cache_is_found_whatever_it_is_called_unless_it_is_not_whole(made: dict[Path, Config]) -> None:
    path = next(iter(made))
    key = reader.open_cache(path).key
    damaged = path.with_name(f"another-{path.name}")
    path.rename(damaged)
    found = stored(path.parent, key)
    assert found is not None and found.path == damaged
    (damaged / "test.labels.npy").unlink()
    assert stored(path.parent, key) is None and stored(path.parent / "nowhere", key) is None
    (*_, other) = made
    build = other.rename(build_name(other, "0123abcd"))
    assert stored(path.parent, reader.open_cache(build).key) is None
