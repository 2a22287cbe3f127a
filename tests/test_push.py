"""A folder for the hub holds what another machine needs, and nothing of this one."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import flare_ds
from flare_ds.adapters.files import check_settings
from flare_ds.config import Config
from flare_ds.exceptions import CheckpointError, ConfigError
from flare_ds.files import write_json
from flare_ds.model_files import hub
from flare_ds.push import push
from flare_ds.runs import METRICS_SCHEMA, RunDirectory
from flare_ds.runs.directory import METRICS
from flare_ds.settings import load_config
from tests.evaluation.test_predict import write_adapter
from tests.mt import write_mt_model
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


def trained(root: Path, *, base: str | None = None, method: str = "lora", **sections: Any) -> Config:
    settings = toy_settings(root, method=method, name="run", steps=1) | sections
    settings["model"]["base"] = base or settings["model"]["base"]
    config = load_config(write_config(settings))
    write_adapter(config)
    return load_config(config.run_dir)


def test_a_folder_is_loaded_when_its_base_has_moved_on(tmp_path: Path, main: Main) -> None:
    """It goes on with the commit that it was trained on, as the run does."""
    folder = push(trained(tmp_path, base=NAME), tmp_path / "pushed")
    for run in (tmp_path / "run", folder):
        main(SECOND)
        assert flare_ds.load(run, "cpu").labels
        assert hub.settled() == {NAME: FIRST}


def test_a_base_of_the_hub_that_lies_in_a_directory_is_taken(
    tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing tells whether it is that commit; another commit is another base, and the fix is such a directory."""
    folder = push(trained(tmp_path, base=NAME), tmp_path / "pushed")
    shutil.copytree(tmp_path / "model", tmp_path / "fetched")
    capsys.readouterr()
    assert flare_ds.load(folder, "cpu", overrides=[f"model.base={tmp_path / 'fetched'}"]).labels
    told = capsys.readouterr().err
    assert re.search(
        rf"warning: .* was trained on commit {FIRST} of the hub; it is unknown whether .* holds that", told
    )
    (folder / "base.json").unlink()  # as folders were before
    main(SECOND)
    with pytest.raises(CheckpointError, match=f"that was commit {FIRST}, this is {SECOND}\n.*--revision {FIRST}"):
        flare_ds.load(folder, "cpu")


def test_a_directory_that_is_given_a_name_does_not_tell_the_commit(tmp_path: Path, main: Main) -> None:
    folder = push(trained(tmp_path), tmp_path / "pushed", base=NAME)
    assert not (folder / "base.json").exists()
    assert flare_ds.load(folder, "cpu").labels and hub.settled() == {NAME: FIRST}


@pytest.mark.parametrize("method", ["lora", "flare_mt"])
def test_an_encoder_has_its_name_on_the_hub_in_all_files(tmp_path: Path, method: str) -> None:
    """Also where it is gone, or the method reads it not."""
    encoder = write_mt_model(tmp_path / "nllb")
    config = trained(tmp_path, method=method, source={"mt_encoder": str(encoder), "mt_language": "pol_Latn"})
    if method == "lora":
        encoder.rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"source\.mt_encoder='.*nllb' is a local directory"):
        push(config, tmp_path / "pushed", base=NAME)
    named = load_config(config.run_dir, ["source.mt_encoder=facebook/nllb-200"])
    folder = push(named, tmp_path / "pushed", base=NAME)
    assert not [file for file in folder.rglob("*") if file.is_file() and str(tmp_path).encode() in file.read_bytes()]
    check_settings(folder / "adapter", load_config(folder))


def test_scores_of_other_settings_are_not_shown(tmp_path: Path) -> None:
    """A card tells the settings once, so they must be those of its scores, too."""
    config = trained(tmp_path)
    run = RunDirectory(config.run_dir)
    figures = {"accuracy": 0.875, "macro_f1": 0.5}
    late = load_config(config.run_dir, ["evaluate.late=3", "evaluate.batch_size=4"])
    scored = {"schema": METRICS_SCHEMA, "adapter_sha256": run.adapter_sha256, "num_examples": 9, "figures": figures}
    write_json(run.path / METRICS, scored | {"settings": late.model_dump(mode="json")})
    with pytest.raises(
        ConfigError, match=r"was scored with other settings: evaluate\.late=3\.0, not None\n"
    ) as refused:
        push(config, tmp_path / "pushed", base=NAME)
    assert f"evaluate.late=3.0, or score it again: flare-ds evaluate {run.path} evaluate.late=null" in refused.value.fix
    folder = push(load_config(run.path, ["evaluate.late=3"]), tmp_path / "pushed", base=NAME)
    card = (folder / "README.md").read_text()
    assert "value: 0.875" in card and "plus 3 times the log-probability" in card and load_config(folder).late == 3


def test_a_folders_card_has_commands_for_where_it_is_read(tmp_path: Path) -> None:
    """Elsewhere are no data of the run's; and what merge writes is not hidden."""
    card = (push(trained(tmp_path), tmp_path / "pushed", base=NAME) / "README.md").read_text()
    assert "flare-ds evaluate . --file labelled.csv\n" in card
    assert "flare-ds merge . --output ../merged\n" in card


def test_a_weight_that_nobody_fitted_is_not_pushed(tmp_path: Path) -> None:
    config = trained(tmp_path, method="late")
    with pytest.raises(CheckpointError, match="no weight was fitted while"):
        push(load_config(config.run_dir, ["evaluate.late=fitted"]), tmp_path / "pushed", base=NAME)
