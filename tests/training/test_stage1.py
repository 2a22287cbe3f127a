"""Stage 1 as one command on real ranks: the merged base is as good as its adapter, or there is none."""

import json
from pathlib import Path

import pytest

from flare_ds.exceptions import ConfigError
from flare_ds.runs.directory import at_place
from flare_ds.settings import load_config, saved_config
from flare_ds.training.stage1 import run_stage1
from flare_ds.training.stage1_settings import load_stage1
from tests.distributed import run_ranks
from tests.toy import toy_settings, write_config

ROWS = 30  # of 40 for validation


def english(root: Path, name: str, **train: object) -> dict:
    options = {"steps": 40, "batch_size": 32, "micro_batch_size": 16, "validate_every": 20, "save_every": 20} | train
    settings = toy_settings(root, method="lora", name=name, validate_rows=ROWS, **options)
    settings["task"] |= {"target_language": "en"}
    return settings


def follows(root: Path) -> dict:
    """Of the run that is to stand on the tuned base."""
    settings = english(root, "later/pl") | {"method": "flare"}
    settings["task"] |= {"target_language": "pl"}
    return settings


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def modified(root: Path) -> dict[Path, int]:
    """When the trained run and its base were written."""
    files = [root / "english/training.json", *(root / "tuned").iterdir()]
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a stage 1 has made the base root/tuned, of the config of a run in Polish."""
    root = tmp_path_factory.mktemp("stage1")
    (root / "later").mkdir()
    write_config(english(root, "english"))
    config = write_config(follows(root))
    words = ["stage1", str(config), "--output", str(root / "tuned"), f"run_dir={root}/english"]
    printed, _ = run_ranks(["flare_ds", *words], 2)
    (root / "printed").write_text(printed)
    return root


@pytest.fixture(scope="module")
def told(root: Path) -> dict[str, str]:
    """What further calls say, by the name of the call."""
    before = modified(root)
    (root / ".again.unchecked").mkdir()  # of a call that was killed while it merged
    idle = write_config(english(root, "idle", steps=1, learning_rate=1e-9))
    run_ranks(["tests.training.stage1_worker", str(root / "english.yaml"), str(idle)], 1)
    assert modified(root) == before
    return read_json(root / "told.json")


def test_the_merged_base_alone_is_as_good_as_its_adapter(root: Path) -> None:
    found, training = read_json(root / "english/stage1.json"), read_json(root / "english/training.json")
    assert found["untuned"] == training["start_validation_score"] < 0.6
    assert found["tuned"] == training["best_validation_score"] > 0.9
    assert found["merged"] == pytest.approx(found["tuned"], abs=1 / ROWS + 1e-6)
    assert found["validation_examples"] == ROWS
    assert f"tuned: validation accuracy {found['merged']:.4f}" in (root / "printed").read_text()
    assert read_json(root / "tuned/merged_from.json")["run"] == str(root / "english")
    assert (root / "printed").read_text().splitlines()[-1] == f"model.base={root}/tuned"


def settings_of(root: Path, *overrides: str) -> dict:
    return load_stage1(root / "later/pl.yaml", overrides).model_dump()


def test_what_it_needs_to_know_follows_from_the_run(root: Path) -> None:
    """As if it had been written out; all but where it lies is what the trained run says."""
    written = english(root, "later/stage1-en")
    assert settings_of(root) == load_config(write_config(written)).model_dump()
    assert saved_config(root / "english") == at_place(load_config(root / "english.yaml"))
    assert not (root / "later/pl").exists()


def test_what_is_typed_wins(root: Path) -> None:
    found = settings_of(root, "run_dir=here", "task.sides=translated", "train.steps=3")
    assert (found["run_dir"], found["task"]["sides"], found["train"]["steps"]) == ("here", "translated", 3)
    assert settings_of(root, "method=lora", "task.target_language=en") == settings_of(root)
    assert settings_of(root, "method=flare_mt", "source.mt_encoder=m")["method"] == "flare_mt"
    assert settings_of(root, "task.target_language=es")["task"]["target_language"] == "es"


def test_a_config_of_stage_1_itself_is_taken_as_it_is(root: Path) -> None:
    written = english(root, "english")
    written["task"] |= {"sides": "translated"}
    path = write_config(written | {"run_dir": str(root / "later/own")})
    assert load_stage1(path) == load_config(path)


def test_of_several_sources_in_translation_the_first_itself_is_read(root: Path) -> None:
    found = settings_of(root, "source.provider=lockstep")
    settings = follows(root)
    settings["task"] |= {"sides": "translated", "extra_source_languages": ["es"]}
    path = write_config(settings | {"run_dir": str(root / "later/three")})
    assert load_stage1(path).model_dump() == found


def test_what_is_done_is_not_done_again(root: Path, told: dict[str, str]) -> None:
    merged = read_json(root / "english/stage1.json")["merged"]
    assert told["finished"].startswith("Stage1(") and f"merged={merged}" in told["finished"]
    assert told["again"].startswith("Stage1(") and (root / "moved/model.safetensors").exists()
    assert f"output='{root / 'moved'}'" in told["moved"], "known by its contents, wherever it lies"
    assert not (root / ".again.unchecked").exists()
    assert "exists already" in told["taken"] and "choose another --output" in told["taken"]
    assert "run_dir=" in told["taken"]


def test_of_two_that_make_one_base_the_second_is_refused(root: Path, told: dict[str, str]) -> None:
    """Each would give its own name to what the other merged."""
    assert f"process {told['holder']} on host" in told["held"] and f"is making the base {root}/held" in told["held"]
    assert not (root / "held").exists() and not [*root.glob(".*.lock")]


@pytest.mark.parametrize("fault", ["merge", "load"])
def test_a_merge_or_a_load_that_did_nothing_is_refused(root: Path, told: dict[str, str], fault: str) -> None:
    training = read_json(root / "english/training.json")
    untuned, best = training["start_validation_score"], training["best_validation_score"]
    assert f"accuracy {untuned:.4f} on {ROWS} validation examples and the untuned base {untuned:.4f}" in told[fault]
    assert f"the best adapter: {best:.4f}" in told[fault]
    assert "merging lost what the adapter had gained" in told[fault] and "in another run_dir" in told[fault]
    assert not list(root.glob(f"*no-{fault}*"))


def test_training_that_gained_nothing_is_refused(root: Path, told: dict[str, str]) -> None:
    assert "nothing was gained" in told["idle"] and "train longer (train.steps)" in told["idle"]
    assert not list(root.glob("*no-idle*"))
    assert not (root / "idle/stage1.json").exists()


def test_it_stops_when_asked_whatever_it_does_and_the_same_command_goes_on(root: Path, told: dict[str, str]) -> None:
    for case in ("asked", "last step"):
        assert told[case].startswith("SIGTERM: stopped; all training so far is saved"), case
    assert told["last step: trained"], "and the idle run then ended as any"
    assert not list(root.glob("*no-asked*")) and not list(root.glob("*no-last*"))


def test_a_base_that_takes_no_merge_is_refused_before_it_trains(told: dict[str, str]) -> None:
    assert told["lost"].startswith("no file holds it") and not told["lost: trained"]


@pytest.mark.parametrize(
    ("method", "language", "problem"),
    [
        ("lora", "pl", "task.target_language='pl'"),
        ("zero_shot", "en", "method=zero_shot"),
        ("flare_mt", "en", "method=flare_mt"),
    ],
)
def test_only_a_task_adapter_is_trained(tmp_path: Path, method: str, language: str, problem: str) -> None:
    settings = toy_settings(tmp_path, method=method)
    settings["task"] |= {"target_language": language}
    settings["source"] = {"mt_encoder": "any"}
    with pytest.raises(ConfigError, match=problem):
        run_stage1(load_config(write_config(settings)), tmp_path / "tuned")
