"""Which settings decide what comes of a run: those that its method reads, and no others."""

from pathlib import Path

import pytest

from flare_ds.config import Config
from flare_ds.runs.changes import changes
from flare_ds.settings import config_of
from tests.toy import toy_settings

VOCABULARY = "train.objective=vocabulary"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy")


def changed(root: Path, *words: str, method: str, override: str) -> set[str]:
    def made(*overrides: str) -> Config:
        return config_of(toy_settings(root, method=method), [*words, *overrides])

    return set(changes(made(), made(override)))


@pytest.mark.parametrize(
    ("override", "methods"),
    [
        ("adapter.r=4", {"lora", "late", "source_prefix", "flare", "flare_mt"}),
        ("adapter.fusion=add", {"flare", "flare_mt"}),
        ("adapter.source_down=shared", {"flare", "flare_mt"}),
        ("train.source_dropout=0.2", {"source_prefix", "flare"}),  # late trains as lora
        ("train.objective=vocabulary", {"zero_shot", "lora", "late", "source_prefix", "flare", "flare_mt"}),
        ("task.train_rows=9", {"lora", "late", "source_prefix", "flare", "flare_mt"}),
        ("task.validation_rows=9", {"zero_shot", "lora", "late", "source_prefix", "flare", "flare_mt"}),
        ("generate.seed=2", set()),
        ("source.provider=cached", {"flare"}),  # source_prefix reads it, and comes to the same
    ],
)
def test_a_run_is_another_by_what_its_method_reads_alone(root: Path, override: str, methods: set[str]) -> None:
    mt = ["source.mt_encoder=nllb", "adapter.pairing=input", "adapter.fused_modules=[q_proj]"]
    all_methods = ("zero_shot", "lora", "late", "source_prefix", "flare", "flare_mt")
    assert {method for method in all_methods if changed(root, *mt, method=method, override=override)} == methods


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ([], False),
        (["evaluate.answers=generated"], True),
        ([VOCABULARY], False),
        ([VOCABULARY, "task.name=squad_hi"], True),
        ([VOCABULARY, "task.path=mine.py"], True),  # whose code is not run to find out
        (["task.path=mine.py"], False),
    ],
)
def test_decoding_counts_where_answers_may_be_written(root: Path, words: list[str], read: bool) -> None:
    found = changed(root, *words, method="zero_shot", override="generate.temperature=1")
    assert found == ({"generate.temperature"} if read else set())


def test_what_only_one_of_two_methods_reads_differs_where_it_is_set_otherwise(root: Path) -> None:
    assert changed(root, method="lora", override="method=flare") == {"method"}
    assert changed(root, method="lora", override="evaluate.answers=generated") == {"evaluate.answers"}
