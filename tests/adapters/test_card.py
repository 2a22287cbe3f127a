"""The model card: front matter the hub can read, and commands that work as they stand."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from peft import PeftModel

from flare_ds.adapters.card import write_card
from flare_ds.cli import make_parser
from flare_ds.config import Config
from flare_ds.evaluation.given_rows import given_pair
from flare_ds.exceptions import CheckpointError
from flare_ds.models.two_stream import build_model
from flare_ds.tasks.load import task_of
from flare_ds.versions import versions
from tests.adapters import adapters
from tests.adapters.adapters import KINDS, PLAIN, make_settings, save_trained, trained_model
from tests.distributed import REPOSITORY, inherited
from tests.report.runs import tables
from tests.toy import toy_settings, write_config


def card_of(config: Config) -> tuple[dict, str]:
    """Front matter and text."""
    _, front, text = (Path(config.run_dir) / "adapter/README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def block(text: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cards")


def saved(root: Path, kind: str) -> Config:
    config = Config.model_validate(make_settings(root, kind))
    save_trained(config, trained_model(config))
    return config


@pytest.mark.parametrize("kind", KINDS)
def test_front_matter_and_settings(root: Path, kind: str) -> None:
    config = saved(root, kind)
    front, text = card_of(config)
    languages = {"flare_full": ["en", "de", "pl"]}.get(kind, ["en", "pl"])
    assert front["base_model"] == config.model.base
    assert front["library_name"] == ("peft" if kind in PLAIN else "flare_ds")
    assert front["language"] == languages and front["metrics"] == ["accuracy", "f1"]
    assert front["pipeline_tag"] == ("text-classification" if kind.endswith("words") else "text-generation")
    assert {"flare_ds", config.method, "multiemo"} <= set(front["tags"])
    assert not {"license", "eval_results", "model_name"} & set(front)
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"] == {"type": "multiemo", "name": "multiemo (pl)", "config": "pl", "split": "validation"}
    assert result["metrics"] == [
        {"type": "accuracy", "name": "accuracy", "value": 0.75},
        {"type": "f1", "name": "macro F1", "value": 0.625},
    ]
    assert Config.model_validate(yaml.safe_load(block(text, "yaml"))) == config
    trained = sum(p.numel() for p in build_parameters(config))
    assert f"{trained:,} trained parameters" in text
    assert all(f"{name} {version}" in text for name, version in versions().items())
    assert ("PEFT alone refuses it" in text) == (kind not in PLAIN)
    assert ("FLARE, y =" in text) == ("flare" in kind) and ("its states are mixed" in text) == (kind == "x_mixup")
    assert ("flare-ds merge" in text) == kind.startswith(("lora", "rslora"))


def build_parameters(config: Config) -> list:
    return [p for p in trained_model(config).parameters() if p.requires_grad]


def scores_in(front: dict) -> dict[tuple[str, str, str], float]:
    """Of the front matter: split, task and metric, and the value."""
    return {
        (result["dataset"]["split"], result["task"]["type"], metric["type"]): metric["value"]
        for result in front["model-index"][0]["results"]
        for metric in result["metrics"]
    }


def test_evaluation_adds_the_test_scores_each_time_anew(root: Path) -> None:
    config = saved(root, "flare")
    kind = "text-classification"
    for accuracy in (0.5, 0.625):
        test = {"examples": 101, "accuracy": accuracy, "macro_f1": 0.25, "loss": 1.5}
        write_card(Path(config.run_dir) / "adapter", config, task_of(config.task), test=test)
        front, text = card_of(config)
        assert scores_in(front) == {
            ("validation", kind, "accuracy"): 0.75,
            ("validation", kind, "f1"): 0.625,
            ("test", kind, "accuracy"): accuracy,
            ("test", kind, "f1"): 0.25,
        }
        assert front["metrics"] == ["accuracy", "f1"]
        assert tables(text) == [
            [
                {"split": "validation (step 20)", "accuracy": "0.7500", "macro F1": "0.6250", "examples": "-"},
                {"split": "test", "accuracy": f"{accuracy:.4f}", "macro F1": "0.2500", "examples": "101"},
            ]
        ]


def test_scores_of_free_answers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "VALIDATION", {"step": 5, "exact_match": 0.5, "f1": 0.625})
    config = saved(root, "lora")
    test = {"examples": 60, "exact_match": 0.25, "f1": 0.375}
    write_card(Path(config.run_dir) / "adapter", config, task_of(config.task), test=test)
    front, text = card_of(config)
    kind = "question-answering"
    assert scores_in(front) == {
        ("validation", kind, "exact_match"): 0.5,
        ("validation", kind, "f1"): 0.625,
        ("test", kind, "exact_match"): 0.25,
        ("test", kind, "f1"): 0.375,
    }
    assert tables(text)[0][1] == {"split": "test", "exact match": "0.2500", "F1": "0.3750", "examples": "60"}


def test_a_language_that_yaml_would_read_as_false(root: Path) -> None:
    settings = make_settings(root, "flare")
    settings["task"] |= {"target_language": "no"}
    config = Config.model_validate(settings | {"run_dir": str(root / "norwegian")})
    save_trained(config, trained_model(config))
    assert card_of(config)[0]["language"] == ["en", "no"]


def test_there_is_no_card_of_a_damaged_adapter(root: Path, tmp_path: Path) -> None:
    config = saved(root, "flare")
    shutil.copy(Path(config.run_dir) / "adapter/adapter_config.json", tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot read"):
        write_card(tmp_path, config, task_of(config.task))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """Saved adapters of the toy world, whose model has a tokenizer."""
    root = tmp_path_factory.mktemp("toy runs")  # the space must be quoted
    configs = {}
    for method in ("lora", "flare"):
        settings = toy_settings(root, method=method, name=method)
        config = configs[method] = Config.model_validate(settings)
        model = build_model(config, label_tokens=[[7], [8], [9], [10]])
        save_trained(config, model)
        shutil.copy(write_config(settings), Path(config.run_dir) / "config.yaml")
        (Path(config.run_dir) / "training.json").write_text("{}")
    return configs


def run_shell(command: str, directory: Path) -> str:
    environment = {
        **inherited(),
        "PYTHONPATH": str(REPOSITORY),
        "DS_ACCELERATOR": "cpu",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(command, shell=True, cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_commands_work_as_they_stand(toy: dict[str, Config], tmp_path: Path) -> None:
    for method, verbs in (("flare", ["evaluate", "predict"]), ("lora", ["evaluate", "predict", "merge"])):
        commands = block(card_of(toy[method])[1], "bash").splitlines()
        assert [command.split()[:2] for command in commands] == [["flare-ds", verb] for verb in verbs]
        for command in commands[1 if method == "flare" else 2 :]:
            run_shell(command.replace("flare-ds", f"{sys.executable} -m flare_ds", 1), tmp_path)
    assert (Path(toy["lora"].run_dir + "-merged") / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["xnli", "tydiqa"])
def test_its_texts_of_several_fields_are_given_as_predict_reads_them(root: Path, name: str) -> None:
    settings = make_settings(root, "flare_full")
    settings["task"] |= {"name": name, "target_language": "sw"}
    config = Config.model_validate(settings | {"run_dir": str(root / name)})
    save_trained(config, trained_model(config))
    command = block(card_of(config)[1], "bash").splitlines()[1]
    options, task = make_parser().parse_args(shlex.split(command)[1:]), task_of(config.task)
    row = given_pair(config, task, target=options.target, sources=options.source)
    assert row.target.fields == dict.fromkeys(task.fields, "TEXT in sw")
    assert [side.fields[task.fields[-1]] for side in row.sources if side] == ["TEXT in en", "TEXT in de"]


def test_the_lines_for_peft_work_as_they_stand(toy: dict[str, Config]) -> None:
    found: dict = {}
    exec(block(card_of(toy["lora"])[1], "python"), found)
    assert isinstance(found["model"], PeftModel)
    assert "```python" not in card_of(toy["flare"])[1]
