"""A hub's name means one commit in a job: a cache laid out as the hub's, whose main branch is another on each host."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from flare_ds.processes import free_port
from tests.distributed import rank_environment, start_afresh
from tests.toy import FILLER, toy_settings, word_tokenizer, write_config, write_model

FIRST, SECOND = "1" * 40, "2" * 40
NAME = "somebody/small"


def write_cache(home: Path, models: dict[str, Path], main: str) -> None:
    """What the hub's own client leaves behind of a model of which it fetched several commits."""
    repository = home / "hub" / f"models--{NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(main)
    for commit, model in models.items():
        shutil.copytree(model, repository / "snapshots" / commit)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict]]:
    """What each of two ranks means: of a new run, and of one that began when main was the first commit."""
    root = tmp_path_factory.mktemp("hub")
    settings = toy_settings(root, name="new")
    write_model(root / "other", seed=5, tokenizer=word_tokenizer(["very", *FILLER]))
    models = {FIRST: root / "model", SECOND: root / "other"}
    for host, main in enumerate((SECOND, FIRST)):
        write_cache(root / f"host{host}", models, main)
    settings["model"]["base"] = NAME
    begun = settings | {"run_dir": str(root / "begun")}
    (root / "begun/state").mkdir(parents=True)
    (root / "begun/cache.json").write_text("{}")
    (root / "begun/base.json").write_text(json.dumps({"name": NAME, "fingerprint": FIRST}))
    port, arguments = free_port(), [str(write_config(settings)), str(write_config(begun))]
    ranks = [
        start_afresh(
            ["tests.training.hub_worker", *arguments],
            rank_environment(rank, 2, port) | {"HF_HOME": str(root / f"host{rank}"), "HF_HUB_OFFLINE": "1"},
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    lines = [[json.loads(line) for line in output.splitlines() if line.startswith('{"commit"')] for output in outputs]
    sums = {commit: total(path) for commit, path in models.items()}
    return [[line | {"expected": sums[line["commit"]]} for line in of_rank] for of_rank in lines]


def total(model: Path) -> float:
    return sum(float(p.double().abs().sum()) for p in AutoModelForCausalLM.from_pretrained(model).parameters())


def test_every_rank_means_what_rank_0_finds(said: list[list[dict]]) -> None:
    assert [of_rank[0]["commit"] for of_rank in said] == [SECOND, SECOND]


def test_a_run_goes_on_with_the_commit_it_began_with(said: list[list[dict]]) -> None:
    assert [of_rank[1]["commit"] for of_rank in said] == [FIRST, FIRST]


def test_weights_and_tokenizer_are_of_that_commit(said: list[list[dict]]) -> None:
    for of_rank in said:
        assert all(line["sum"] == pytest.approx(line["expected"]) for line in of_rank)
        assert of_rank[0]["token"] != of_rank[1]["token"]
