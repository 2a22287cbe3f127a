"""Opening a run: what does not suit its task or its tokens is refused, and its cache is found without the raw data."""

import json
import shutil
from pathlib import Path

import pytest

from flare_ds.config import Config
from flare_ds.exceptions import CacheError, ConfigError
from flare_ds.settings import load_config
from flare_ds.training.run import _prepare
from tests.toy import toy_settings


def make(root: Path, **task: object) -> Config:
    settings = toy_settings(root, steps=1)
    return Config.model_validate(settings | {"task": settings["task"] | task})


def begin(root: Path) -> None:
    """A run that has saved a state."""
    _prepare(make(root), train=True)
    (root / "run" / "state").mkdir()


def test_a_run_says_what_its_tokens_are_made_of(tmp_path: Path) -> None:
    path = _prepare(make(tmp_path), train=True)
    record = json.loads((tmp_path / "run" / "cache.json").read_text())
    manifest = json.loads((path / "manifest.json").read_text())
    settings = record.pop("settings")
    assert record == {"key": manifest["key"], "fields": manifest["fields"]}
    assert settings["task"]["data_dir"] == str(tmp_path / "data") and settings["model"] == {
        "base": str(tmp_path / "model")
    }


def test_a_run_that_has_begun_goes_on_with_no_other_tokens(tmp_path: Path) -> None:
    begin(tmp_path)
    config = tmp_path / "run" / "config.yaml"
    saved = config.read_text()
    assert _prepare(make(tmp_path), train=True).is_dir()
    with pytest.raises(CacheError, match="max_prompt_tokens: 32, not 128") as error:
        _prepare(make(tmp_path, max_prompt_tokens=32), train=True)
    assert str(tmp_path / "run") in error.value.problem and "run_dir" in error.value.fix
    with pytest.raises(CacheError, match="train_rows: 50, not None"):
        _prepare(make(tmp_path, train_rows=50), train=True)
    assert config.read_text() == saved


def test_a_trained_run_is_evaluated_on_other_rows_but_not_through_another_prompt(tmp_path: Path) -> None:
    begin(tmp_path)
    assert _prepare(make(tmp_path, test_rows=7), train=False).is_dir()
    with pytest.raises(CacheError, match="max_prompt_tokens: 32, not 128"):
        _prepare(make(tmp_path, max_prompt_tokens=32), train=False)


def test_a_run_that_has_not_begun_may_change(tmp_path: Path) -> None:
    _prepare(make(tmp_path), train=True)
    assert _prepare(make(tmp_path, max_prompt_tokens=32), train=True).is_dir()


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A run whose raw data and tokenizer are gone; beside its cache lies another of the same languages."""
    _prepare(make(tmp_path, test_rows=7), train=True)
    begin(tmp_path)
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "model/tokenizer.json").unlink()
    return tmp_path


def cache_of(root: Path) -> Path:
    """The cache that the run says is its own."""
    key = json.loads((root / "run/cache.json").read_text())["key"]
    (cache,) = (path for path in (root / "cache").iterdir() if path.name.endswith(f"-{key[:16]}"))
    return cache


def test_a_run_is_evaluated_without_the_raw_data_and_the_tokenizer(bare: Path) -> None:
    cache, record = cache_of(bare), (bare / "run/cache.json").read_text()
    assert _prepare(load_config(bare / "run", ["evaluate.batch_size=3"]), train=False) == cache
    assert (bare / "run/cache.json").read_text() == record


def test_the_recorded_cache_is_found_by_its_key_and_opened_only_whole(bare: Path) -> None:
    cache_of(bare).rename(bare / "cache/renamed")
    assert _prepare(load_config(bare / "run"), train=False) == bare / "cache/renamed"
    (bare / "cache/renamed/test.labels.npy").unlink()
    with pytest.raises(CacheError, match="cannot be built again"):
        _prepare(load_config(bare / "run"), train=False)


def test_a_cache_that_is_gone_is_built_again_from_the_raw_data(tmp_path: Path) -> None:
    begin(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    path = _prepare(load_config(tmp_path / "run"), train=False)
    assert json.loads((tmp_path / "run/cache.json").read_text())["key"].startswith(path.name.rpartition("-")[2])


def test_a_run_without_cache_and_data_says_what_to_do(bare: Path) -> None:
    key = json.loads((bare / "run/cache.json").read_text())["key"]
    shutil.rmtree(bare / "cache")
    with pytest.raises(CacheError, match="cannot be built again") as error:
        _prepare(load_config(bare / "run"), train=False)
    assert key[:16] in error.value.problem and f"cache_dir='{bare}/cache'" in error.value.problem
    assert f"*-{key[:16]}" in error.value.fix and "set cache_dir" in error.value.fix


@pytest.mark.parametrize("override", ["task.test_rows=7", "task.data_dir=elsewhere", "task.max_prompt_tokens=32"])
def test_other_rows_or_tokens_are_another_cache(bare: Path, override: str) -> None:
    """It is prepared as ever, which takes the raw data."""
    with pytest.raises(ConfigError, match="tokenizer"):
        _prepare(load_config(bare / "run", [override]), train=False)


def test_a_run_that_trains_looks_at_the_raw_data(bare: Path) -> None:
    with pytest.raises(ConfigError, match="tokenizer"):
        _prepare(load_config(bare / "run"), train=True)


def test_free_answers_need_the_whole_vocabulary(tmp_path: Path) -> None:
    settings = toy_settings(tmp_path)
    config = Config.model_validate(settings | {"task": {"name": "tydiqa", "target_language": "fi"}})
    with pytest.raises(ConfigError, match=r"train\.objective='labels', but the answers of task tydiqa are free text"):
        _prepare(config, train=True)
