"""The first rows of a split: the same rows, fewer of them, and no example cut in two."""

import pickle

import numpy as np
import pytest

from flare_ds.batches.first_rows import FirstRows
from flare_ds.config import Config
from flare_ds.data.cache import Cache, open_cache, prepare_cache
from flare_ds.models.loading import load_tokenizer
from tests.qa_world import qa_settings


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    config = Config.model_validate(qa_settings(tmp_path_factory.mktemp("who"), steps=1))
    return open_cache(prepare_cache(config, load_tokenizer(config.model)))


@pytest.mark.parametrize("rows", [1, 7, 26, 33, None, 10_000])
def test_rows_are_those_of_the_split(cache: Cache, rows: int | None) -> None:
    whole = cache.split("test")
    part = FirstRows(cache.path, cache.manifest, rows).split("test")
    wanted = len(whole) if rows is None else min(rows, len(whole))
    # all windows of the example that the last wanted row belongs to, and none of the next
    expected = sum(example <= whole.examples[wanted - 1] for example in whole.examples)
    for found in (part, pickle.loads(pickle.dumps(part))):
        assert len(found) == expected >= wanted
        assert found.labels.tolist() == whole.labels[:expected].tolist()
        assert found.examples.tolist() == whole.examples[:expected].tolist()
        for stream in ("source", "target"):
            assert found.prompt_lengths(stream).tolist() == whole.prompt_lengths(stream)[:expected].tolist()
            assert found.lengths(stream).tolist() == whole.lengths(stream)[:expected].tolist()
        last = expected - 1
        assert found.ids(last) == whole.ids(last) and found.golds(last) == whole.golds(last)
        assert np.array_equal(found.prompt("target", last), whole.prompt("target", last))


def test_an_example_may_have_more_rows_than_were_asked_for(cache: Cache) -> None:
    examples = cache.split("test").examples
    first_window = int(np.flatnonzero(np.bincount(examples)[examples] > 1)[0])
    part = FirstRows(cache.path, cache.manifest, first_window + 1).split("test")
    assert len(part) > first_window + 1
