"""docs/serving.md, followed to the letter: its commands and its Python run as printed, and what it says is so.

The adapters are random; so is the base. What flare_ds itself says of the test rows is what everything is compared with.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard

from flare_ds.adapters.files import WEIGHTS
from flare_ds.config import Config, TranslateConfig
from flare_ds.data.cache import open_cache, prepare_cache
from flare_ds.data.parallel import ParallelRow
from flare_ds.exceptions import CheckpointError, ConfigError
from flare_ds.models.loading import load_tokenizer
from flare_ds.models.merge import merge_run
from flare_ds.push import push
from flare_ds.settings import load_config
from flare_ds.tasks.load import task_of
from flare_ds.training.run import begin_run
from tests.distributed import REPOSITORY, run_ranks
from tests.evaluation.test_predict import held_out, write_adapter
from tests.qa_world import qa_settings
from tests.toy import LABELS, toy_settings, write_config, write_data, write_model

PAGE = (REPOSITORY / "docs/serving.md").read_text(encoding="utf-8")
PYTHON, BASH = (re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) for language in ("python", "bash"))
METHODS = ("lora", "input_fusion", "flare")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's runs and base, evaluated; then the page's commands."""
    root = tmp_path_factory.mktemp("serving")
    (root / "runs").mkdir()
    write_model(root / "models/tuned")
    write_data(root / "data", languages=("en", "pl", "es"), rows=60)
    (root / "labelled.csv").write_text("target,label\nword1 word2,positive\n")
    (root / "model").symlink_to(root / "models/tuned")
    for method in METHODS:
        settings = toy_settings(root, method=method, name=f"runs/pl-{method}", steps=1)
        settings["task"] |= {"test_rows": 9, "validation_rows": 9}
        settings["model"] |= {"base": str(root / "models/tuned")}
        settings["translate"] = {"model": "facebook/m2m100_418M", "beams": 2, "max_new_tokens": 99, "drop": ["loop"]}
        begin(load_config(write_config(settings)))
    commands = [["evaluate", f"runs/pl-{method}"] for method in METHODS]
    lines = [shlex.split(line) for block in BASH for line in block.splitlines()]
    assert {program for program, *_ in lines} == {"flare-ds"}
    commands += [arguments for _, *arguments in lines]
    (root / "commands.json").write_text(json.dumps(commands))
    (root / "printed").write_text(run_ranks(["tests.commands_worker", str(root), str(root / "commands.json")], 1)[0])
    return root


def begin(config: Config) -> None:
    """A run that has trained, with a random adapter."""
    write_adapter(config)
    begin_run(config, open_cache(prepare_cache(config, load_tokenizer(config.model))))


@pytest.fixture(scope="module")
def page(root: Path) -> Iterator[dict[str, Any]]:
    """The names that the page's Python leaves, run in the directory where the runs are."""
    before, names = Path.cwd(), {}
    os.chdir(root)
    try:
        for block in PYTHON:
            exec(compile(block, "docs/serving.md", "exec"), names)
        yield names
    finally:
        os.chdir(before)


def prompts(config: Config) -> Iterator[tuple[ParallelRow, str, str]]:
    task = task_of(config.task)
    for row in held_out(config):
        yield row, task.prompt(row.sources[0].fields), task.prompt(row.target.fields)


@pytest.mark.parametrize(
    ("method", "model"), [("lora", "model"), ("lora", "merged"), ("lora", "shared"), ("input_fusion", "joint")]
)
def test_without_flare_ds_the_scores_are_the_same(root: Path, page: dict[str, Any], method: str, model: str) -> None:
    expected = pd.read_parquet(root / f"runs/pl-{method}/predictions.parquet").set_index("id")
    for row, source, target in prompts(load_config(root / f"runs/pl-{method}")):
        ids = page["joint_ids"](source, target) if method == "input_fusion" else page["ids_of"](target)
        found = page["scores"](page[model], ids)
        wanted = {word: expected.loc[row.id, f"log_probability_{word}"] for word in LABELS}
        assert found == pytest.approx(wanted, abs=2e-4)
    assert expected.filter(like="log_probability").nunique().min() > 1


def test_the_adapter_is_what_scores(root: Path, page: dict[str, Any]) -> None:
    base = page["AutoModelForCausalLM"].from_pretrained(root / "models/tuned")
    ids = page["ids_of"]("Review: word1 word2\nSentiment:")
    assert page["scores"](base, ids) != pytest.approx(page["scores"](page["model"], ids), abs=1e-2)


def test_a_fused_adapter_is_refused_where_it_would_be_another(root: Path, page: dict[str, Any]) -> None:
    base = page["AutoModelForCausalLM"].from_pretrained(root / "models/tuned")
    with pytest.raises(Exception, match="FLARE_DS"):
        page["PeftModel"].from_pretrained(base, root / "runs/pl-flare/adapter")
    with pytest.raises(CheckpointError):
        merge_run(load_config(root / "runs/pl-flare"), root / "models/pl-flare")


def test_other_rows_stand_beside_the_runs_own(root: Path) -> None:
    names = {file.name for file in (root / "runs/pl-lora").glob("metrics*.json")}
    assert names == {f"metrics{name}.json" for name in ("", "-validation", "-es", "-file-labelled")}


def test_the_page_says_every_method() -> None:
    table = PAGE.partition("\n\n")[2].partition("\n\n")[0]
    assert {name for name in flare_ds_methods() if f"`{name}`" in table} == set(flare_ds_methods())


def flare_ds_methods() -> list[str]:
    from flare_ds.methods import METHODS

    return list(METHODS)


def test_a_folder_for_the_hub(root: Path) -> None:
    """Front matter the hub reads, nothing of this machine, and a run that flare_ds reads."""
    folder = root / "hub/pl-lora"
    assert "hf upload OWNER/NAME hub/pl-lora" in (root / "printed").read_text()
    card = ModelCard.load(folder / "README.md")
    metrics = json.loads((root / "runs/pl-lora/metrics.json").read_text())
    assert (card.data.base_model, card.data.license) == ("google/gemma-3-270m", "gemma")
    assert (card.data.library_name, card.data.language) == ("peft", ["en", "pl"])
    results = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert results["test", "accuracy"] == metrics["figures"]["accuracy"]
    check_shared(folder, root)
    config = load_config(folder, [f"model.base={root / 'models/tuned'}"])
    run = load_config(root / "runs/pl-lora")
    assert config.method == "lora" and config.adapter == run.adapter
    assert config.translate == run.translate.model_copy(update={"directory": "translations"})


def check_shared(folder: Path, root: Path) -> None:
    """No file names a place of this machine."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert folder / "adapter" / WEIGHTS in files
    for file in files:
        assert str(root).encode() not in file.read_bytes(), file
        assert file.name not in ("metrics.json", "predictions.parquet", "train_log.jsonl", "state.safetensors")


def test_a_task_of_ones_own_and_languages_of_the_hub_go_along(root: Path) -> None:
    settings = qa_settings(root / "qa", method="flare", name="run", steps=1)
    ours = {"engine": "ctranslate2", "beams": 3}
    settings["translate"] = ours | {"model": str(root / "ct2"), "directory": str(root / "texts")}
    config = load_config(write_config(settings))
    begin(config)
    folder = push(load_config(config.run_dir), root / "hub/qa", base="gpt2")
    check_shared(folder, root)
    (root / "qa/who.yaml").rename(root / "qa/gone.yaml")
    shared = load_config(folder)
    assert shared.translate == TranslateConfig.model_validate(ours)
    assert task_of(shared.task).prompt({"text": "a", "question": "b"}) == "Text: a\nQuestion: b\nAnswer:"
    front = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert (front["library_name"], front["base_model"]) == ("flare_ds", "gpt2") and "license" not in front


@pytest.mark.parametrize(
    ("overrides", "base", "told"),
    [
        ([], None, "--base OWNER/NAME"),
        ([], "/models/tuned", "--base OWNER/NAME"),
        (["method=zero_shot"], "o/n", "method=zero_shot trains nothing"),
        (["run_dir=nowhere"], "o/n", "has not ended"),
        (["source.mt_encoder=."], "o/n", "source.mt_encoder='.' is a local directory"),
    ],
)
def test_what_cannot_be_shared_is_refused(root: Path, overrides: list[str], base: str | None, told: str) -> None:
    config = load_config(root / "runs/pl-lora", [*overrides, "source.mt_language=pol_Latn"])
    with pytest.raises((ConfigError, CheckpointError)) as refused:
        push(config, root / "hub/refused", base=base)
    assert told in str(refused.value) and not list(root.glob("hub/*refused*"))
    with pytest.raises(CheckpointError, match="exists already"):
        push(load_config(root / "runs/pl-lora"), root / "hub/pl-lora", base="o/n")
