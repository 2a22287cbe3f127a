"""Overrides: a text is what is written, everything else is read as YAML, and what cannot be read is named."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from flare_ds.config import Config
from flare_ds.exceptions import ConfigError
from flare_ds.overrides import apply_overrides, is_text
from flare_ds.settings import load_config
from tests.test_config_conflicts import SETTINGS


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    return path


def overridden(*overrides: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"adapter": None, "task": {"name": "x"}, "grid": ["pl"]}
    apply_overrides(settings, overrides, partial(is_text, Config))
    return settings


TEXTS = ["out/try #3", "@scratch/data", "%TMP%/data", "[new] llama", "*best", "runs/pl: first try", "&a", "!x", "`ls`"]
TEXTS += [
    "{a",
    "a]",
    "- a",
    "? a",
    "| a",
    "> a",
    "a\tb",
    "#3",
    "1e3",
    "2024-01-01",
    "no",
    "true",
    "7",
    ".nan",
    "a=b",
    "...",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("quoted", ["{}", "'{}'", '"{}"', " {} "])
def test_a_text_is_what_is_written(text: str, quoted: str) -> None:
    written = quoted.format(text.replace("\t", "\\t") if quoted[0] == '"' else text)
    assert overridden(f"task.name={written}")["task"]["name"] == text


@pytest.mark.parametrize("text", [text for text in TEXTS if "\t" not in text and text[0] != "-"])
def test_it_is_the_setting_of_the_run_and_of_its_saved_config(path: Path, text: str, tmp_path: Path) -> None:
    config = load_config(path, [f"run_dir={text}", f"model.base={text}"])
    assert config.run_dir == config.model.base == text
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config


def test_a_quote_within_a_text_and_a_text_in_quotes() -> None:
    assert overridden("run_dir=it's", 'model.base="a \\" #b"') == overridden() | {
        "run_dir": "it's",
        "model": {"base": 'a " #b'},
    }


@pytest.mark.parametrize("nothing", ["", "null", " "])
def test_nothing(nothing: str) -> None:
    settings = overridden(f"task.data_dir={nothing}", f"train.epochs={nothing}")
    assert settings["task"]["data_dir"] is None and settings["train"]["epochs"] is None


def test_other_settings_are_read_as_yaml() -> None:
    settings = overridden(
        "train.steps=1e3", "adapter.fused_modules=[q_proj, 'a #b']", "adapter.align=left", "mixup={layer: 2}"
    )
    assert settings["train"]["steps"] == 1000 and settings["mixup"] == {"layer": 2}
    assert settings["adapter"] == {"fused_modules": ["q_proj", "a #b"], "align": "left"}, "an empty section is filled"


WRONG = ["train.steps=10 #fast", "adapter.fused_modules=[o_proj", "train.steps=@x", "train.steps=*x", "train.steps=%5"]
WRONG += [
    "train.steps=`1`",
    "train.steps=a: b: c",
    "train.steps={a: 1, a: 2}",
    "train.steps=" + "[" * 99,
    "train.steps='1",
]
WRONG += [
    "train.steps=1\n---\n2",
    "run_dir='abc",
    'run_dir="a" b',
    'run_dir="a" #b',
    "train.steps=!!python/name:os.x 1",
]
WRONG += [
    "train.steps",
    "=3",
    ".steps=3",
    "train..steps=3",
    "train.=3",
    "..=",
    "",
    "task.name.x=3",
    "grid.0=pl",
    "a.b=\x00",
]


@pytest.mark.parametrize("override", WRONG)
def test_what_cannot_be_read_is_named(override: str) -> None:
    with pytest.raises(ConfigError) as refused:
        overridden(override)
    assert repr(override)[1:60] in refused.value.problem and refused.value.fix


def test_all_that_is_wrong_is_told_at_once(path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(path, ["train.steps=[", "run_dir", "adapter.r=3"])
    assert "'train.steps=['" in refused.value.problem and "'run_dir'" in refused.value.problem


def test_all_settings_that_are_wrong_are_told_at_once_each_with_its_fix(path: Path) -> None:
    overrides = ["train.steps=many", "train.lerning_rate=1", "adapter.r=0", "adapter.target_modules=3", "mixup=3"]
    overrides += ["method=flair", "model.dtype=fp16", "train.weight_decay=.nan", "task.data_dir=$NO_SUCH_PLACE"]
    with pytest.raises(ConfigError) as refused:
        load_config(path, overrides)
    told = refused.value.problem.splitlines()
    assert told[0] == f"9 problems in {path}" and len(told) == 10
    for override in overrides:
        assert any(override.split("=")[0] in line or "flair" in line for line in told[1:]), override
    assert "'learning_rate'" in refused.value.problem and "did you mean 'flare'" in refused.value.problem
    assert "NO_SUCH_PLACE is not set" in refused.value.problem


def test_all_settings_that_do_not_fit_together_are_told_at_once(path: Path) -> None:
    overrides = ["adapter.fusion=cross_attention", "adapter.fusion_heads=3", "source.provider=cached"]
    with pytest.raises(ConfigError) as refused:
        load_config(path, overrides)
    assert "2 problems" in refused.value.problem
    assert "adapter.fusion_heads=3" in refused.value.problem and "pairing='module'" in refused.value.problem


def test_a_number_where_a_text_belongs(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(SETTINGS | {"run_dir": 2024, "adapter": None}), encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_config(tmp_path / "run.yaml")
    assert "run_dir=2024" in refused.value.problem and 'in quotes: run_dir: "..."' in refused.value.problem
    assert "adapter=None" in refused.value.problem and "indented" in refused.value.problem


@pytest.mark.parametrize("given", ["train.steps=1", [3]])
def test_overrides_that_are_no_list_of_texts_are_told_once(given: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        apply_overrides({}, given, partial(is_text, Config))
    assert refused.value.problem == f"overrides={given!r} is not a list of texts"
    assert refused.value.fix == 'give a list, e.g. ["train.steps=100"]'
