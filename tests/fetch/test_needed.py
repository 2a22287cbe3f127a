"""What a config names and is not here is said at once, with what makes it; a hub is asked for hub names alone."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from flare_ds.cli import main
from flare_ds.config import Config, TaskConfig
from flare_ds.data.cache import prepare_cache
from flare_ds.exceptions import ConfigError, DataError
from flare_ds.fetch.fetch import home
from flare_ds.fetch.needed import check_base, check_data, check_needed
from flare_ds.model_files import hub
from flare_ds.model_files.fingerprint import model_fingerprint
from flare_ds.settings import parse_config
from flare_ds.tasks.base import SPLITS
from tests.data.cache.moods import moods_config, word_tokenizer, write_data
from tests.tasks.tables import write_table
from tests.toy import toy_settings, write_config


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with `out` in it, an empty cache of the hub, and a hub that must not be asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "cached_file", lambda name, *_: pytest.fail(f"the hub is asked for {name}"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)  # a test that trained in this process was rank 0 of 1
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("base", "problem", "fix"),
    [
        ("/nowhere/x", "is not a directory", "check the path"),
        ("./x", "is not a directory", "check the path"),
        ("a/b/c", "is not a directory", "check the path"),
        ("models/gemma3-270m", "is not there", "flare-ds fetch model gemma3-270m --link models/gemma3-270m"),
        ("models/tuned", "is not there", "flare-ds stage1 CONFIG --output models/tuned makes it"),
        ("out/bse", "'out' holds no 'bse'", "correct the path; or, if the hub's model .* hf download out/bse"),
    ],
)
def test_a_base_that_is_meant_as_a_path(base: str, problem: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=problem) as refused:
        check_base(base)
    assert f"model.base={base!r}" in refused.value.problem and re.search(fix, refused.value.fix)
    with pytest.raises(ConfigError):
        model_fingerprint(base)


def test_a_base_that_may_be_the_hubs(here: Path) -> None:
    for name in ("owner/name", "name"):
        check_base(name)
    (here / "hub/models--out--bse/snapshots").mkdir(parents=True)
    check_base("out/bse")
    (here / "out/base").mkdir()
    check_base("out/base")


ON_RANKS = ("train", "evaluate", "predict --source y --target x", "stage1 --output x")
ALONE = ("check", "prepare", "inspect")


@pytest.mark.parametrize(
    ("verb", "ranks"), [*((verb, ["--ranks", "2"]) for verb in ON_RANKS), *((verb, []) for verb in (*ON_RANKS, *ALONE))]
)
def test_verbs_say_so_before_a_rank_starts(
    here: Path, verb: str, ranks: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flare_ds.cli.ranks._launch", lambda *_: pytest.fail("ranks are started"))
    config = str(write_config(toy_settings(here)))
    words = [*verb.split(), config, "model.base=models/tuned", *ranks]
    assert main(words) == 1
    told = capsys.readouterr().err
    assert told.count("model.base='models/tuned' is not there") == 1 and "--output models/tuned makes it" in told


def config_of(name: str, data: Path, **task: object) -> Config:
    run = {"method": "flare", "run_dir": "unused", "model": {"base": "owner/name"}, "train": {"steps": 1}}
    return parse_config(run | {"task": {"name": name, "data_dir": str(data)} | task}, origin="test")


def check(config: Config) -> None:
    check_needed(config, origin="test")


def test_a_translated_target_may_have_a_test_set_alone(here: Path) -> None:
    rows = [{"id": "1", "text": "fine", "label": "positive"}]
    config = config_of("topics", here, path=str(here / "topics.yaml"), target_language="sw", sides="translated")
    (here / "topics.yaml").write_text(
        "{name: topics, languages: [en, sw], pools: [train, test], fields: [text], labels: [positive], "
        "template: '{text}:'}"
    )
    write_table(here / "en/train.jsonl", rows)
    with pytest.raises(DataError, match=r"found no .*/sw/test\."):
        check(config)
    write_table(here / "sw/test.jsonl", rows)
    check(config)
    with pytest.raises(DataError, match=r"found no .*/(en/test|sw/train)\."):
        check(config_of("topics", here, path=str(here / "topics.yaml"), target_language="sw"))


def test_the_original_language_is_needed_for_every_pair(here: Path) -> None:
    rows = [{"id": "1", "text": "fine", "label": "positive"}]
    config = config_of("nusax", here, target_language="jav")
    for language in ("eng", "jav"):
        for split in SPLITS:
            write_table(here / f"{language}/{split}.jsonl", rows)
    with pytest.raises(DataError, match=r"found no .*/ind/train\."):
        check(config)
    for split in SPLITS:
        write_table(here / f"ind/{split}.jsonl", rows)
    check(config)


def test_a_cache_is_enough(here: Path) -> None:
    write_data(here / "data")
    config = moods_config(here)
    shutil.move(here / "data", here / "moved")
    with pytest.raises(DataError, match=r"task.data_dir='.*data' is not a directory"):
        check(config)
    shutil.move(here / "moved", here / "data")
    prepare_cache(config, word_tokenizer())
    shutil.rmtree(here / "data")
    check(config)


def test_data_that_no_hub_has_must_be_somewhere() -> None:
    def named(name: str) -> Config:
        made = {"method": "lora", "run_dir": "unused", "model": {"base": "owner/name"}, "train": {"steps": 1}}
        return parse_config(made | {"task": {"name": name, "target_language": "jav"}}, origin="test")

    with pytest.raises(DataError, match=r"multiemo is not on the hub") as told:
        check_data(named("multiemo").task)
    assert "flare-ds fetch data multiemo --link data/multiemo" in str(told.value)
    check(named("nusax"))


def test_data_are_fetched_to_where_they_are_looked_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLARE_DS_HOME", str(here / "home"))
    elsewhere = str(here / "my data/multiemo")
    for place, link in ((elsewhere, ["--link", elsewhere]), (str(home() / "data/multiemo"), [])):
        with pytest.raises(DataError, match="is not a directory") as told:
            check_data(TaskConfig(name="multiemo", data_dir=place, target_language="pl"))
        command = told.value.fix.removeprefix("check the path, or ")
        assert shlex.split(command) == ["flare-ds", "fetch", "data", "multiemo", *link]
