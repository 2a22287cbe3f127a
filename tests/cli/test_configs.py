"""new, check and config: what is written passes, what is wrong is told at once, and what editors are told is true."""

import importlib.util
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from flare_ds.adapters.fusion import FUSIONS
from flare_ds.cli import main
from flare_ds.cli.configs import config_schema
from flare_ds.evaluation.answerable import check_answers
from flare_ds.exceptions import ConfigError, DataError
from flare_ds.methods import METHODS
from flare_ds.new_config import new_config
from flare_ds.settings import load_config, parse_config
from flare_ds.tasks import TASKS
from flare_ds.tasks.load import check_languages
from flare_ds.yaml_file import parse_yaml, read_yaml
from tests.mt import write_mt_model
from tests.tasks import test_squad_hi, test_vitaminc
from tests.test_shipped_configs import RUNS
from tests.toy import toy_settings, write_config, write_data, write_model

LANGUAGES = {"vitaminc": ["--languages", "en,pl"]}  # it has but one


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an MT encoder, and the files of each task that has local ones."""
    root = tmp_path_factory.mktemp("configs")
    write_model(root / "base dir", hidden=32)
    write_mt_model(root / "mt")
    write_data(root / "multiemo", rows=5)
    for name in ("vitaminc", "squad_hi"):
        (root / name).mkdir()
    test_vitaminc.write(root / "vitaminc", [test_vitaminc.example("Oslo", "Cold .", "Warm .", "True")])
    test_squad_hi.write(root / "squad_hi", test_squad_hi.english_file(), test_squad_hi.hindi_file())
    return root


@pytest.mark.parametrize(
    ("task", "method"), [*((task, "flare") for task in TASKS), *(("multiemo", method) for method in METHODS)]
)
def test_what_new_writes_passes_check(
    root: Path, tmp_path: Path, task: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And check prints the config that it resolved to."""
    file = tmp_path / "run.yaml"
    data = ["--data", str(root / task)] if (root / task).is_dir() else []
    words = ["--task", task, "--model", str(root / "base dir"), "--method", method, *data, *LANGUAGES.get(task, [])]
    assert main(["new", str(file), *words]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    mt = [f"source.mt_encoder={root / 'mt'}"] if method == "flare_mt" else []
    assert main(["check", str(file), f"run_dir={tmp_path / 'run'}", *mt]) == 0
    printed = capsys.readouterr()
    settings = parse_yaml(printed.out, origin="out")
    assert parse_config(settings, origin="out") == load_config(file, [f"run_dir={tmp_path / 'run'}", *mt])
    assert "base      LlamaForCausalLM" in printed.err
    assert ("training  none" in printed.err) == (not METHODS.get(method).trains)
    assert not (tmp_path / "run").exists()


def test_check_says_who_will_hold_the_base(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A DeepSpeed JSON counts only where the ranks may share it."""
    file, wrong = tmp_path / "run.yaml", tmp_path / "wrong.json"
    wrong.write_text("{}")
    data = ["--data", str(root / "multiemo"), "--method", "flare"]
    assert main(["new", str(file), "--task", "multiemo", "--model", str(root / "base dir"), *data]) == 0
    words = ["check", str(file), f"run_dir={tmp_path / 'run'}", f"deepspeed={wrong}"]
    assert main([*words, "train.whole_model=true"]) == 0
    assert f"engine    each rank holds the whole base; deepspeed={wrong} is ignored" in capsys.readouterr().err
    for may_share in ("auto", "false"):
        assert main([*words, f"train.whole_model={may_share}"]) == 1
        assert "zero_optimization.stage=None" in capsys.readouterr().err


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_task_and_method_begins_with_a_commented_config(task: str, method: str, tmp_path: Path) -> None:
    languages = LANGUAGES.get(task, ["", ""])[1].split(",") if task in LANGUAGES else []
    if METHODS.get(method).late and TASKS.get(task).free_answers:
        with pytest.raises(ConfigError, match=r"ranks label words, .*\n  fix: leave late out"):
            new_config(task=task, base="b", method=method, languages=languages)
        return
    file = tmp_path / "run.yaml"
    file.write_text(new_config(task=task, base="b", method=method, languages=languages), encoding="utf-8")
    config = load_config(file)
    check_languages(TASKS.get(task), config.task)
    check_answers(config, TASKS.get(task))
    assert config.method == method and config.task.name == task
    lines = file.read_text().splitlines()
    assert all(" # " in line or line.startswith("#") or line.endswith(":") for line in lines)
    assert len(lines) < 30


@pytest.mark.parametrize("name", ["no", "a b", 'say "x": #1', "x" * 200 + " y", "ключ"])
def test_odd_names_are_read_back_as_they_are(name: str) -> None:
    text = new_config(task="multiemo", base=name, method="lora", languages=["en", "nb"], data_dir=name)
    settings = parse_yaml(text, origin="text")
    assert settings["model"]["base"] == settings["task"]["data_dir"] == name
    assert settings["task"]["target_language"] == "nb" and settings["task"]["sides"] == "translated"


def test_a_base_of_other_names_gets_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bloom"}')
    settings = parse_yaml(new_config(task="multiemo", base=str(tmp_path), method="flare"), origin="text")
    assert settings["adapter"] == {"fused_modules": ["dense", "dense_4h_to_h"]}
    assert settings["model"]["attention"] == "eager"
    settings = parse_yaml(new_config(task="multiemo", base=str(tmp_path), method="flare_mt"), origin="text")
    assert settings["adapter"] == {"fused_modules": ["query_key_value"]}


def test_what_new_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("mine")
    words = ["new", str(file), "--model", "m", "--task"]
    for more, told in ((["multiemo"], "exists already"), (["multemo"], "did you mean 'multiemo'")):
        assert main([*words, *more]) == 1
        assert told in capsys.readouterr().err
    assert file.read_text() == "mine"
    with pytest.raises(ConfigError, match="names 1 languages"):
        new_config(task="multiemo", base="m", method="lora", languages=["pl"])
    with pytest.raises(ConfigError, match="has only en") as refused:
        new_config(task="vitaminc", base="m", method="lora")
    assert "--languages en,TARGET" in refused.value.fix
    with pytest.raises(DataError, match="no NLLB tag is known for language 'xx'"):
        new_config(task="multiemo", base="m", method="lora", languages=["en", "xx"])
    with pytest.raises(ConfigError, match="method=flare reads two languages"):
        new_config(task="multiemo", base="m", method="flare", languages=["en", "en"])


def test_new_writes_a_config_of_a_task_of_ones_own(tmp_path: Path) -> None:
    task = {"name": "mood", "languages": ["en", "cs"], "hub": None, "pools": ["all"], "fields": ["text"]}
    file = tmp_path / "mood.yaml"
    file.write_text(yaml.safe_dump(task | {"labels": ["good", "bad"], "template": "{text}\nMood:"}))
    text = new_config(task=str(file), base="b", method="flare", data_dir="d")
    config = parse_config(parse_yaml(text, origin="text"), origin="text")
    assert (config.task.name, config.task.path, config.task.target_language) == ("mood", str(file), "cs")
    with pytest.raises(ConfigError, match="cannot read"):
        new_config(task=str(tmp_path / "nowhere.yaml"), base="b", method="flare")


def test_check_tells_all_that_is_wrong_at_once(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(toy_settings(tmp_path))
    wrong = ["task.target_language=xx", "task.data_dir=/nowhere", "model.base=models/tuned"]
    assert main(["check", str(config), *wrong]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "3 problems in" in captured.err
    for told in ("no language 'xx'", "task.data_dir='/nowhere'", "flare-ds stage1 CONFIG --output models/tuned"):
        assert told in captured.err
    wrong = ["deepspeed=nowhere.json", "adapter.fused_modules=[qproj]", "task.chat=true"]
    assert main(["check", str(config), *wrong]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "3 problems in" in captured.err
    for told in ("nowhere.json", "did you mean 'q_proj'", "has no chat template"):
        assert told in captured.err
    assert main(["check", str(config), "task.target_language=es"]) == 1
    assert "sentence_es.json" in capsys.readouterr().err, "a file that the data lacks"
    assert main(["check", str(config), "model.base=/nowhere", f"task.data_dir={root / 'multiemo'}"]) == 1
    assert capsys.readouterr().err.count("/nowhere") == 1, "once, not for each thing that reads it"


def test_check_misses_the_packages_that_a_run_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, found = write_config(toy_settings(tmp_path)), importlib.util.find_spec
    gone = ("wandb", "flash_attn", "kernels")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name in gone else found(name, *of))
    assert main(["check", str(config), "tracking.to=[wandb]", "model.attention=flash_attention_2"]) == 1
    said = capsys.readouterr().err
    assert "2 problems in" in said and "tracking.to names wandb, which is not installed" in said
    assert "needs the package flash-attn, which is not installed: set model.attention=sdpa, or install it" in said


def test_what_is_no_config_of_a_run_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(toy_settings(tmp_path))
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    assert main(["check", str(config), f"task.path={tmp_path / 'mine.yaml'}", "task.name=mine"]) == 1
    said = capsys.readouterr().err
    assert said.count("'template' is missing") == 1 and "split_fields" not in said and "Undefined" not in said
    assert main(["check", str(config), "task.path=nope.yaml"]) == 1
    assert capsys.readouterr().err.count("task.path='nope.yaml' is not there") == 1
    sweep = tmp_path / "my sweep.yaml"
    sweep.write_text("base: {}\nout: x\ngrid: {}\n")
    assert main(["check", str(sweep)]) == 1
    assert f"is a sweep, not a run\n  fix: flare-ds sweep '{sweep}' --dry-run" in capsys.readouterr().err
    run = config.rename(tmp_path / "my run.yaml")
    assert main(["sweep", str(run)]) == 1
    assert f"is a run, not a sweep\n  fix: flare-ds train '{run}'" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "nowhere")]) == 1
    assert "there is no config or run directory" in capsys.readouterr().err


def test_check_counts_what_a_cache_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1000 training rows or so, in steps of 16: half an epoch."""
    settings = toy_settings(tmp_path)
    del settings["train"]["steps"]
    config = write_config(settings)
    assert main(["check", str(config), "train.epochs=0.5"]) == 0
    assert "the steps of 0.5 epochs" in capsys.readouterr().err
    assert main(["prepare", str(config), "train.epochs=0.5"]) == 0
    capsys.readouterr()
    assert main(["check", str(config), "train.epochs=0.5"]) == 0
    said = capsys.readouterr().err
    rows = int(said.partition("rows      ")[2].partition(" train")[0].replace(",", ""))
    assert f"{-(-rows // 32)} steps (0.5 epochs) of 16 examples" in said
    # 2 layers, r=8, hidden 64: A and B of 7 linear layers, and an A of the source's own for the two fused ones
    a_and_b = 8 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert f"{2 * (a_and_b + 8 * (64 + 128)):,} parameters\n" in said


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_schema_takes_every_shipped_run(path: Path) -> None:
    jsonschema.Draft202012Validator(config_schema()).validate(read_yaml(path))


def test_the_schema_says_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    settings = toy_settings(tmp_path)
    assert all(check.is_valid(settings | {"method": method}) for method in METHODS)
    for section, name, value in (("train", "stps", 3), ("train", "steps", 0), ("model", "dtype", "half")):
        assert not check.is_valid(settings | {section: settings[section] | {name: value}})
    assert not check.is_valid(settings | {"method": "flair"})
    assert all(check.is_valid(settings | {"adapter": {"fusion": function}}) for function in FUSIONS)
    assert not check.is_valid(settings | {"adapter": {"fusion": "add_rleu"}})
