"""Settings that are each right and mean nothing together: refused while the config is read, with what to do."""

from pathlib import Path

import pytest
import yaml

from flare_ds.exceptions import ConfigError
from flare_ds.settings import load_config

SETTINGS = {
    "method": "flare",
    "run_dir": "runs/x",
    "deepspeed": "ds_configs/zero3_cpu.json",
    "model": {"base": "m"},
    "task": {"name": "multiemo", "data_dir": "d", "target_language": "pl"},
    "train": {"steps": 1},
}
MT = ["method=flare_mt", "source.mt_encoder=nllb", "source.mt_language=pol_Latn"]
CACHED = ["source.provider=cached", "adapter.pairing=output"]
FUSED = ["method=flare", "method=source_prefix", "method=x_mixup"]
EXTRA = ["task.extra_source_languages=[de, fr]"]
SEVERAL = "use source.provider=lockstep (method=flare or source_prefix), or leave them out"
CROSS = ["adapter.fusion=cross_attention", "adapter.fusion_heads=3"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("overrides", "problem", "fix"),
    [
        (CROSS, "adapter.fusion_heads=3 does not divide adapter.r=8", "choose a divisor of adapter.r"),
        (["task.extra_source_languages=[en]"], "['en'] repeats a language", "name each source language once"),
        (["task.extra_source_languages=[pl]"], "['pl'] repeats a language", "not the target language"),
        (["task.extra_source_languages=[de, de]"], "['de', 'de'] repeats a language", "name each source language once"),
        (CACHED + EXTRA, "method=flare with source.provider='cached' reads one source", SEVERAL),
        (CACHED + EXTRA + FUSED[1:2], "method=source_prefix with source.provider='cached' reads one source", SEVERAL),
        (MT + EXTRA, "method=flare_mt reads one source", SEVERAL),
        ([*CACHED, "adapter.span=full"], "'cached' stores prompts only", "use adapter.span=prompt"),
        (
            [*MT, "adapter.span=full"],
            "method=flare_mt stores prompts only",
            "use adapter.span=prompt",
        ),
        (CACHED[:1], "adapter.pairing='module' needs one a module", "adapter.pairing=input"),
        (
            ["method=source_prefix", "model.attention=flash_attention_2"],
            "method=source_prefix masks what stands before the target",
            "use model.attention=sdpa",
        ),
        (MT[:1], "method=flare_mt needs source.mt_encoder", "add it, e.g. source.mt_encoder=facebook/nllb"),
        (["task.target_language=en"], "method=flare reads two languages", "use method=lora without evaluate.late"),
        (["method=input_fusion", "task.target_language=en"], "method=input_fusion reads two", "use method=lora"),
        (["method=late", "task.target_language=en"], "method=late reads two", "use method=lora without evaluate.late"),
        (
            ["method=lora", "task.target_language=en", "evaluate.late=1"],
            "evaluate.late=1.0 reads two languages",
            "use method=lora without evaluate.late",
        ),
        (
            ["method=translate_test", "evaluate.late=2"],
            "method=translate_test has no others",
            "leave evaluate.late out",
        ),
        (["method=zero_shot", "evaluate.late=fitted"], "method=zero_shot does not", "e.g. evaluate.late=1"),
        (["method=late", "adapter.train_head=true"], "scores of the frozen base", "use adapter.train_head=false"),
        (["method=flair"], "unknown method 'flair'", "did you mean 'flare'?"),
    ],
)
def test_refused(path: Path, overrides: list[str], problem: str, fix: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(path, overrides)
    assert problem in refused.value.problem and str(path) in refused.value.problem
    assert fix in refused.value.fix


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["adapter.fusion_heads=3"],
        [*CROSS[:1], "adapter.fusion_heads=4"],
        EXTRA,
        CACHED,
        [*CACHED, "adapter.pairing=input"],
        MT,
        ["adapter.span=full", "adapter.pairing=module", *EXTRA],
        ["method=lora", "task.target_language=en"],
        ["method=source_prefix", "source.provider=cached", "adapter.span=full"],
        ["method=source_prefix", *CROSS],
        ["method=lora", *CACHED, *CROSS, "adapter.pairing=module", "adapter.span=full", *EXTRA],
        [*MT, "source.provider=cached"],
        [*MT, "source.provider=cached", "adapter.pairing=module"],
    ],
)
def test_accepted(path: Path, overrides: list[str]) -> None:
    load_config(path, overrides)


def test_how_many_sources_are_fused(path: Path) -> None:
    assert load_config(path).sources == 1
    assert load_config(path, EXTRA).sources == 3
    assert load_config(path, [*EXTRA, "method=lora"]).sources == 0
    assert load_config(path, [*EXTRA, "method=x_mixup"]).sources == 0
    assert load_config(path, MT).sources == 1


def test_how_many_sources_run_beside_the_row(path: Path) -> None:
    assert load_config(path, EXTRA).streams_beside == 3
    assert load_config(path, ["method=x_mixup"]).streams_beside == 1
    assert load_config(path, ["method=source_prefix", *EXTRA]).streams_beside == 3
    assert load_config(path, ["method=source_prefix", *EXTRA]).sources_read == ("en", "de", "fr")
    assert [load_config(path, [m, "adapter.span=full"]).fuses_answers for m in FUSED] == [True, False, False]
    for overrides in (CACHED, MT, ["method=input_fusion"], ["method=translate_test"], ["method=zero_shot"]):
        assert load_config(path, overrides).streams_beside == 0


def test_an_mt_encoder_meets_modules_as_wide_as_the_model(path: Path) -> None:
    assert load_config(path, MT).adapter.fused_modules == ["q_proj", "v_proj"]
    assert load_config(path, [*MT, "adapter.r=4"]).adapter.fused_modules == ["q_proj", "v_proj"]
    assert load_config(path, [*MT, "adapter.fused_modules=[k_proj]"]).adapter.fused_modules == ["k_proj"]
    assert load_config(path).adapter.fused_modules == ["o_proj", "down_proj"]


def test_the_mt_language_follows_from_the_target_language(path: Path) -> None:
    assert load_config(path, MT[:2]).source.mt_language == "pol_Latn"
    assert load_config(path, [*MT[:2], "task.target_language=es"]).source.mt_language == "spa_Latn"
    assert load_config(path, [*MT[:2], "source.mt_language=pl"]).source.mt_language == "pl"
    assert load_config(path).source.mt_language is None


@pytest.mark.parametrize("tag", ["pol_Latn", "pl"])
def test_the_mt_language_of_a_run_is_not_that_of_another_target(path: Path, tmp_path: Path, tag: str) -> None:
    """A saved config names the tag that followed from its own."""
    saved = tmp_path / "run/config.yaml"
    saved.parent.mkdir()
    saved.write_text(load_config(path, [*MT[:2], f"source.mt_language={tag}"]).to_yaml())
    (saved.parent / "versions.json").write_text("{}")
    assert load_config(saved.parent).source.mt_language == tag
    assert load_config(saved.parent, ["task.target_language=es"]).source.mt_language == "spa_Latn"
    given = ["task.target_language=es", "source.mt_language=pol_Latn"]
    assert load_config(saved.parent, given).source.mt_language == "pol_Latn"
    saved.write_text(saved.read_text().replace(f"mt_language: {tag}", "mt_language: ces_Latn"))
    assert load_config(saved.parent, ["task.target_language=es"]).source.mt_language == "ces_Latn"
