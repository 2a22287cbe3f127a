"""A small cache, built for each test that asks for one."""

from pathlib import Path

import pytest

from flare_ds.data.cache import prepare_cache
from tests.data.cache.moods import moods_config, word_tokenizer, write_data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_data(tmp_path / "data")
    return tmp_path


@pytest.fixture
def built(root: Path) -> Path:
    return prepare_cache(moods_config(root), word_tokenizer())
