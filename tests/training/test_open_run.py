"""Opening a run: an objective that does not suit the task, and a run that has begun with other tokens, are refused."""

import json
from pathlib import Path

import pytest

from flare_ds.config import Config
from flare_ds.exceptions import CacheError, ConfigError
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
    assert record == {"key": manifest["key"], "fields": manifest["fields"]}


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


def test_free_answers_need_the_whole_vocabulary(tmp_path: Path) -> None:
    settings = toy_settings(tmp_path)
    config = Config.model_validate(settings | {"task": {"name": "tydiqa", "target_language": "fi"}})
    with pytest.raises(ConfigError, match=r"train\.objective='labels', but the answers of task tydiqa are free text"):
        _prepare(config, train=True)
