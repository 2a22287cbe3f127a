"""Paths as they are typed: `~` and variables are filled in wherever a path is a setting or an option."""

from itertools import product
from pathlib import Path

import pytest
import yaml

from flare_ds.cli import _parse
from flare_ds.exceptions import ConfigError
from flare_ds.paths import expanded
from flare_ds.settings import load_config
from tests.test_config_conflicts import SETTINGS

PATHS = ["run_dir", "cache_dir", "deepspeed", "model.base", "task.path", "task.data_dir", "translate.model"]
PATHS += ["translate.directory", "source.mt_encoder"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/homes/ada")
    monkeypatch.setenv("SCRATCH", "/scratch/a b")
    monkeypatch.setenv("LOOP", "$SCRATCH")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("~", "/homes/ada"),
        ("~/runs", "/homes/ada/runs"),
        ("$SCRATCH", "/scratch/a b"),
        ("$SCRATCH/x", "/scratch/a b/x"),
        ("out/${SCRATCH}x", "out//scratch/a bx"),
        ("a~/b", "a~/b"),
        ("facebook/nllb-200-distilled-600M", "facebook/nllb-200-distilled-600M"),
        ("cost in $", "cost in $"),
        ("a$-b", "a$-b"),
        ("a$1 ${x y}", "a$1 ${x y}"),
        ("/-x", "/-x"),
        ("ż '\" #1: [x]", "ż '\" #1: [x]"),
    ],
)
def test_what_is_filled_in(typed: str, meant: str) -> None:
    assert expanded(typed) == meant == expanded(meant)


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        *product(["", "  "], ["is empty"]),
        *product(["~nobody-of-that-name/x", "a/~/b", "./~"], ["there is no such home directory"]),
        *product(["-x", "./-x", "-"], ["begins with a dash"]),
        ("a\nb", r"has '\\n'"),
        ("a\0b", r"has '\\x00'"),
    ],
)
def test_what_is_refused_by_name(typed: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        expanded(typed)
    with pytest.raises(ConfigError, match=rf"^path .* ({why}|has '\\x1b')"):
        expanded(f"{typed}\x1b")


@pytest.mark.parametrize(("typed", "name"), [("$UNSET/x", "UNSET"), ("${UNSET}", "UNSET"), ("$LOOP/x", "LOOP")])
def test_a_variable_is_named(typed: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"variable {name} is"):
        expanded(typed)
    with pytest.raises(ConfigError, match="variable EMPTY is not set"):
        expanded("$EMPTY/x")


@pytest.mark.parametrize("name", PATHS)
def test_every_path_setting(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a YAML, as an override, and in the saved config."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    config = load_config("~/run.yaml", [f"{name}=~/$SCRATCH/x"])
    *section, leaf = name.split(".")
    assert getattr(getattr(config, section[0]) if section else config, leaf) == f"{tmp_path}//scratch/a b/x"
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config
    with pytest.raises(ConfigError, match=f"{name}.*UNSET"):
        load_config("~/run.yaml", [f"{name}=$UNSET"])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["merge", "r", "--output", "~/x"], "output"),
        (["merge", "~/x", "--output", "o"], "config"),
        (["stage1", "r", "--output", "~/x"], "output"),
        (["predict", "r", "--file", "~/x"], "file"),
        (["predict", "r", "--output", "~/x"], "output"),
        (["report", "~/x"], "directory"),
        (["report", "r", "--out", "~/x"], "out"),
        (["prepare", "~/x"], "config"),
        (["inspect", "c", "--tokenizer", "~/x"], "tokenizer"),
        (["sweep", "~/x"], "config"),
        (["train", "r", "--task-path", "~/x"], "task_path"),
        (["cache", "ls", "~/x"], "directory"),
        (["cache", "rm", "--in", "~/x"], "directory"),
        (["cache", "stats", "~/x"], "cache"),
        (["cache", "diff", "~/x", "b"], "a"),
        (["cache", "verify", "~/x"], "caches"),
        (["cache", "rm", "~/x"], "caches"),
    ],
    ids=" ".join,
)
def test_every_path_option(arguments: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = getattr(_parse(arguments), name)
    assert [str(path) for path in (found if isinstance(found, list) else [found])] == ["/homes/ada/x"]
    with pytest.raises(SystemExit):
        _parse([word.replace("~", "$UNSET") for word in arguments])
    assert "UNSET is not set" in capsys.readouterr().err
