"""A folder for the hub holds what another machine needs, and nothing of this one."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

import flare_ds
from flare_ds.config import Config
from flare_ds.exceptions import CheckpointError
from flare_ds.model_files import hub
from flare_ds.push import push
from flare_ds.settings import load_config
from tests.evaluation.test_predict import write_adapter
from tests.runs.test_hub_names import FIRST, NAME, SECOND, write_cache
from tests.toy import toy_settings, write_config

Main = Callable[[str], None]


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Main]:
    """A hub without a network; sets which commit its main branch is, for what is asked from then on."""
    toy_settings(tmp_path)
    write_cache(tmp_path, {FIRST: tmp_path / "model", SECOND: tmp_path / "model"}, FIRST)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def moved(commit: str) -> None:
        next((tmp_path / "hub").glob("*/refs/main")).write_text(commit)
        hub._COMMITS.clear()

    hub._COMMITS.clear()
    yield moved
    hub._COMMITS.clear()


def trained(root: Path, base: str) -> Config:
    settings = toy_settings(root, method="lora", name="run", steps=1)
    settings["model"]["base"] = base
    config = load_config(write_config(settings))
    write_adapter(config)
    return load_config(config.run_dir)


def test_a_folder_is_loaded_when_its_base_has_moved_on(tmp_path: Path, main: Main) -> None:
    """It goes on with the commit that it was trained on, as the run does."""
    folder = push(trained(tmp_path, NAME), tmp_path / "pushed")
    for run in (tmp_path / "run", folder):
        main(SECOND)
        assert flare_ds.load(run, "cpu").labels
        assert hub.settled() == {NAME: FIRST}


def test_a_base_of_the_hub_that_lies_in_a_directory_is_taken(
    tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing tells whether it is that commit; another commit is another base, and the fix is such a directory."""
    folder = push(trained(tmp_path, NAME), tmp_path / "pushed")
    shutil.copytree(tmp_path / "model", tmp_path / "fetched")
    capsys.readouterr()
    assert flare_ds.load(folder, "cpu", overrides=[f"model.base={tmp_path / 'fetched'}"]).labels
    told = capsys.readouterr().err
    assert re.search(rf"warning: .* was trained on commit {FIRST} of the hub; whether .* cannot be told", told)
    (folder / "base.json").unlink()  # as folders were before
    main(SECOND)
    with pytest.raises(CheckpointError, match=f"that was commit {FIRST}, this is {SECOND}\n.*--revision {FIRST}"):
        flare_ds.load(folder, "cpu")


def test_a_directory_that_is_given_a_name_does_not_tell_the_commit(tmp_path: Path, main: Main) -> None:
    folder = push(trained(tmp_path, str(tmp_path / "model")), tmp_path / "pushed", base=NAME)
    assert not (folder / "base.json").exists()
    assert flare_ds.load(folder, "cpu").labels and hub.settled() == {NAME: FIRST}
