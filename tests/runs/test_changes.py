"""Which settings decide what comes of a run: those that its method reads, and no others."""

from pathlib import Path

import pytest

from flare_ds.config import Config
from flare_ds.runs.changes import changes
from flare_ds.settings import config_of
from tests.toy import toy_settings

VOCABULARY = "train.objective=vocabulary"
TRAINED = {"lora", "late", "source_prefix", "x_mixup", "flare", "flare_mt"}


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
        ("adapter.r=4", TRAINED),
        ("adapter.fusion=add", {"flare", "flare_mt"}),
        ("adapter.source_down=shared", {"flare", "flare_mt"}),
        ("mixup.ratio=0.4", {"x_mixup"}),
        ("train.source_dropout=0.2", {"source_prefix", "x_mixup", "flare"}),  # late trains as lora
        ("train.weight_decay=0.1", TRAINED),
        ("train.schedule=cosine", TRAINED),
        ("train.save_every=7", set()),
        ("train.objective=vocabulary", {"zero_shot", *TRAINED}),
        ("task.train_rows=9", TRAINED),
        ("task.validation_rows=9", {"zero_shot", *TRAINED}),
        ("generate.seed=2", set()),
        ("translate.beams=4", set()),
        ("source.provider=cached", {"flare"}),  # source_prefix reads it, and comes to the same
    ],
)
def test_a_run_is_another_by_what_its_method_reads_alone(root: Path, override: str, methods: set[str]) -> None:
    mt = ["source.mt_encoder=nllb", "adapter.pairing=input", "adapter.fused_modules=[q_proj]"]
    assert {
        method for method in ("zero_shot", *TRAINED) if changed(root, *mt, method=method, override=override)
    } == methods


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


@pytest.mark.parametrize("setting", ["translate.beams=4", "translate.engine=ctranslate2", "translate.drop=[loop]"])
def test_how_a_side_is_translated_counts_where_one_is(root: Path, setting: str) -> None:
    name = setting.partition("=")[0]
    assert changed(root, "task.sides=translated", method="lora", override=setting) == {name}
    assert changed(root, "task.sides=translated", "task.target_language=en", method="lora", override=setting) == set()


def test_what_only_one_of_two_methods_reads_differs_where_it_is_set_otherwise(root: Path) -> None:
    assert changed(root, method="lora", override="method=flare") == {"method"}
    assert changed(root, method="lora", override="evaluate.answers=generated") == {"evaluate.answers"}
