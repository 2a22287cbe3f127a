"""`deepspeed:` by name: what comes with flare_ds is found anywhere, `auto` fits, and a run records what it was."""

from pathlib import Path

import pytest
import torch
import yaml

from flare_ds.config import Config
from flare_ds.exceptions import ConfigError
from flare_ds.runs.directory import at_place
from flare_ds.runtime import ds_config
from flare_ds.runtime.ds_config import read_ds_config, with_chosen_deepspeed
from flare_ds.settings import load_config, saved_config
from tests.test_config_conflicts import SETTINGS
from tests.test_ds_configs import FILES, read


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test of this file runs in the clone."""
    monkeypatch.chdir(tmp_path)


def config_of(deepspeed: str | None, dtype: str = "bfloat16") -> Config:
    given = {} if deepspeed is None else {"deepspeed": deepspeed}
    without = {key: value for key, value in SETTINGS.items() if key != "deepspeed"}
    Path("run.yaml").write_text(yaml.safe_dump(without | given | {"model": {"base": "m", "dtype": dtype}}))
    return load_config("run.yaml")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_name_is_its_file(file: Path) -> None:
    found = read_ds_config(config_of(file.stem, "float32" if "fp32" in file.stem else "bfloat16"))
    assert found == read(file)


@pytest.mark.parametrize("given", [None, "auto"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_fits_device_and_precision(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: str, given: str | None
) -> None:
    monkeypatch.setattr(ds_config, "device", lambda: torch.device(device))
    config = config_of(given, dtype)
    found = read_ds_config(config)
    assert found["zero_optimization"]["overlap_comm"] is (device == "cuda")
    assert found.get("bf16", {}).get("enabled", False) is (dtype == "bfloat16")
    chosen = with_chosen_deepspeed(config)
    assert chosen.deepspeed in {file.stem for file in FILES} and read_ds_config(chosen) == found


def test_every_choice_is_a_file() -> None:
    assert set(ds_config._FITTING.values()) <= {file.stem for file in FILES}


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(ConfigError) as refused:
        config_of("zero3_bf61")
    for part in [
        "deepspeed='zero3_bf61' is none of the DeepSpeed settings",
        "did you mean 'zero3_bf16'",
        "auto",
        *(file.stem for file in FILES),
    ]:
        assert part in str(refused.value)


def test_a_name_is_kept_where_a_path_is_made_absolute(tmp_path: Path) -> None:
    Path("zero3_cpu").mkdir()  # of the same name, and no reason to take the one for the other
    assert at_place(config_of("zero3_cpu")).deepspeed == "zero3_cpu"
    assert at_place(config_of("own.json")).deepspeed == str(tmp_path / "own.json")
    assert at_place(config_of("./own")).deepspeed == str(tmp_path / "own")


def test_a_file_of_ones_own_moves_with_its_run(tmp_path: Path) -> None:
    for run in ("before/run", "after/run"):
        Path(run).mkdir(parents=True)
        Path(run).with_name("own.json").touch()
    config = at_place(config_of("before/own.json").model_copy(update={"run_dir": "before/run"}))
    Path("after/run/config.yaml").write_text(config.to_yaml())
    assert saved_config(Path("after/run")).deepspeed == str(tmp_path / "after/own.json")
