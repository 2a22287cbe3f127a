"""The content key: one cache for what is the same, another for every difference, and each difference has a name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from flare_ds.checksums import json_sha256
from flare_ds.config import TaskConfig
from flare_ds.data.cache import differences, open_cache, prepare_cache, requests
from flare_ds.data.cache.encode import PlainForm
from flare_ds.data.cache.key import asked_fields, differing, rows_fingerprint
from flare_ds.data.cache.requests import remembered
from flare_ds.data.parallel import ParallelData, ParallelRow, Side, split_language
from flare_ds.settings import parse_config
from flare_ds.tasks import TableTask
from flare_ds.tasks.base import Answer
from tests.data.cache.moods import MOODS, WORDS, Moods, eos_first, moods_config, word_tokenizer
from tests.data.cache.texts import byte_tokenizer


def test_a_second_call_finds_the_first_cache(root: Path, built: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.iterdir()}
    assert prepare_cache(moods_config(root), word_tokenizer()) == built
    assert {path: path.stat().st_mtime_ns for path in built.iterdir()} == before


def test_the_key_does_not_depend_on_places_or_on_how_the_tokenizer_was_used(root: Path, built: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer(["say", "say mood"], padding=True, truncation=True, max_length=5)
    tokenizer.save_pretrained(root / "tokenizer")
    reloaded = AutoTokenizer.from_pretrained(root / "tokenizer")
    (root / "data").rename(root / "moved")
    again = prepare_cache(moods_config(root, data_dir=str(root / "moved")), reloaded)
    assert again == built


def test_a_base_with_several_chat_templates_shares_the_cache_of_one_with_none(root: Path, built: Path) -> None:
    directory = root / "chatting"
    word_tokenizer().save_pretrained(directory)
    for name in ("chat_template.jinja", "additional_chat_templates/tool_use.jinja"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("{{ messages }}")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert set(tokenizer.chat_template) == {"default", "tool_use"}
    assert prepare_cache(moods_config(root), tokenizer) == built


@pytest.mark.parametrize(
    ("target", "key", "content"),
    [
        ("de", "28b06dcd4037a317", "8155b0170a0d8d47"),
        ("en", "b51d23ffc374f285", "ab2b2068e5d92462"),
    ],
)
def test_a_cache_keeps_its_key_and_its_bytes(root: Path, target: str, key: str, content: str) -> None:
    """As format version 4 was first written: who changes them raises the version."""
    manifest = open_cache(prepare_cache(moods_config(root, target_language=target), word_tokenizer())).manifest
    fields = manifest.fields | {"tokenizer_sha256": ""}  # depends on the version of the tokenizers library
    assert json_sha256(fields)[:16] == key
    assert json_sha256({name: section.sha256 for name, section in manifest.sections.items()})[:16] == content


@pytest.mark.parametrize(
    "change",
    [
        {"max_prompt_tokens": 64},
        {"train_rows": 9},
        {"test_rows": 9},
        {"target_language": "en"},
        {"extra_source_languages": ["fr"]},
    ],
)
def test_every_setting_of_the_data_changes_the_key(root: Path, built: Path, change: dict[str, object]) -> None:
    other = prepare_cache(moods_config(root, **change), word_tokenizer())
    assert open_cache(other).key != open_cache(built).key
    found = differences(open_cache(built).manifest.fields, open_cache(other).manifest.fields)
    assert any(line.startswith(next(iter(change))) for line in found)


def test_the_order_of_the_sources_changes_the_key_and_the_method_does_not(root: Path) -> None:
    def directory(method: str, extra: list[str]) -> Path:
        config = moods_config(root, extra_source_languages=extra)
        return prepare_cache(config.model_copy(update={"method": method}), word_tokenizer())

    assert directory("lora", ["fr", "pl"]) == directory("flare", ["fr", "pl"])
    one, other = (open_cache(directory("flare", extra)).key for extra in (["fr", "pl"], ["pl", "fr"]))
    assert one != other


def test_one_changed_letter_of_the_data_changes_the_key(root: Path, built: Path) -> None:
    path = root / "data/en.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("unseen7\n", "unseen8x\n"), encoding="utf-8")
    assert prepare_cache(moods_config(root), word_tokenizer()) != built


def test_a_changed_prompt_or_version_of_the_task_changes_the_key(
    root: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed() -> list[str]:
        fields = open_cache(prepare_cache(moods_config(root), word_tokenizer())).manifest.fields
        return [name for name, value in open_cache(built).manifest.fields.items() if fields[name] != value]

    with monkeypatch.context() as patch:
        patch.setattr(MOODS, "version", 2)
        assert changed() == ["task_version"]
    monkeypatch.setattr(MOODS, "prompt", lambda fields: f"say : {fields['text']} mood : mood :")
    assert changed() == ["prompt_template"]


def test_a_prompt_that_says_the_name_of_a_field_is_not_one_that_says_the_field() -> None:
    templates = ("{text} {title}", "{text} {{title}}", "{{text}} {title}", "{title} {{title}}", "{{{text}}} {title}")
    keys = {template: prompt_in_key(template) for template in templates}
    assert len(set(keys.values())) == len(templates)
    assert keys["{text} {title}"] == "{text} {title}" and keys["{{{text}}} {title}"] == "{{text}} {title}", "as ever"


def test_fields_that_a_prompt_does_not_say_are_in_the_key_where_there_are_any() -> None:
    assert asked("{text} {title}").keys() == asked("{text}").keys() - {"unsaid_fields"}
    assert asked("{text} {{title}}")["unsaid_fields"] == {"en": ["title"]}


def prompt_in_key(template: str) -> str:
    return asked(template)["prompt_template"]


def asked(template: str) -> dict[str, Any]:
    task = TableTask(name="a", languages=("en",), pools=("all",), fields=("text", "title"), template=template)
    config = parse_config(
        {
            "method": "lora",
            "run_dir": "unused",
            "model": {"base": "unused"},
            "task": {"name": "a", "target_language": "en"},
            "train": {"steps": 1},
        },
        origin="test",
    )
    return asked_fields(config, task)


@pytest.mark.parametrize(
    "said",
    ["{text.lower()}", "{text.strip()}", "{text[:200]}", "{text or 'none'}", "{text.split()[0]}", "{title and text}"],
)
def test_what_a_prompt_in_code_does_to_a_text_is_in_the_key(said: str) -> None:
    """The prompt around the fields' names is the same for each, and for one that raises over an empty text."""

    def fields(said: str, path: str | None) -> dict[str, object]:
        kind = type(
            "Own", (Moods,), {"fields": ("text", "title"), "prompt": lambda _, of: eval(f'f"{said} {{title}}"', {**of})}
        )
        task = TaskConfig(name="moods", path=path, target_language="pl")
        return asked_fields(moods_config(Path("unused")).model_copy(update={"task": task}), kind())

    one, other = fields("{text}", "own.py"), fields(said, "own.py")
    assert differing(one, other) == ["prompts_of_texts"] and fields(said, "own.py") == other
    assert fields(said, None) == fields("{text}", None) == one | {"prompts_of_texts": None}


@pytest.mark.parametrize(
    ("pair", "sides", "tells"),
    [
        ("en-pl", "own", False),
        ("pl-en", "own", True),
        ("pl-pl", "own", True),
        ("en-pl", "translated", True),
        ("en-xx", "translated", False),
    ],
)
def test_which_language_decides_a_split_is_told_where_another_did_before(pair: str, sides: str, tells: bool) -> None:
    """Runs of before do not say it, and are as they were wherever it was the same."""
    source, target = pair.split("-")
    config = TaskConfig(name="a", source_language=source, target_language=target, sides=sides)
    task = TableTask(name="a", languages=("en", "pl"), pools=("all",), fields=("text",), template="{text}:")
    assert split_language(task, config) == ("en" if tells else None)
    for other in ({"original_language": "pl"}, {"parallel": False}, {"pools": ("train", "validation", "test")}):
        assert split_language(replace(task, **other), config) is None


@pytest.mark.parametrize(
    ("pair", "sides", "labels", "tells"),
    [
        ("en-pl", "translated", (), True),
        ("en-xx", "translated", (), True),
        ("en-pl", "translated", ("good", "bad"), False),
        ("en-en", "translated", (), False),
        ("en-pl", "own", (), False),
    ],
)
def test_whose_clusters_a_cache_has_is_told_where_they_were_others_before(
    pair: str, sides: str, labels: tuple[str, ...], tells: bool
) -> None:
    source, target = pair.split("-")
    config = TaskConfig(name="a", source_language=source, target_language=target, sides=sides)
    task = TableTask(
        name="a", languages=("en", "pl"), pools=("all",), fields=("text",), template="{text}:", labels=labels
    )
    run = moods_config(Path("unused")).model_copy(update={"task": config})
    assert bool(asked_fields(run, task)["clusters_of"]) == tells


def test_another_tokenizer_changes_the_key(root: Path, built: Path) -> None:
    assert prepare_cache(moods_config(root), byte_tokenizer()) != built
    assert prepare_cache(moods_config(root), word_tokenizer(eos_token="<pad>")) != built


def row(label: int | None = 0, source: str | None = "a", answers: tuple[Answer, ...] = ()) -> ParallelRow:
    return ParallelRow(
        "id", label, (source if source is None else Side({"text": source}),), Side({"text": "b"}, answers)
    )


def test_a_cache_that_did_not_tell_that_prompts_start_with_eos_is_built_anew(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(PlainForm, "_front", 0)
        before.setattr(requests, "_VERSION", 2)
        old = prepare_cache(moods_config(root), eos_first())
        assert open_cache(old).manifest.prefix_ids == []
    assert remembered(moods_config(root)) is None
    new = prepare_cache(moods_config(root), eos_first())
    assert new != old and open_cache(new).manifest.prefix_ids == [WORDS.index("<eos>")]
    found = remembered(moods_config(root))
    assert found is not None and found.path == new


def test_every_part_of_a_row_is_in_the_checksum() -> None:
    splits = [{"test": [one]} for one in (row(), row(1), row(None), row(source="b"), row(source=None))]
    splits += [{"test": [row(answers=(answer,))]} for answer in (Answer("b"), Answer("b", 0), Answer("", 0))]
    splits += [
        {"train": [row()]},
        {"test": [row(), row()]},
        {"test": [ParallelRow("other", 0, row().sources, row().target)]},
    ]
    assert len({rows_fingerprint(ParallelData(one, {})) for one in splits}) == len(splits)


def test_differences_name_each_field() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b: 3, not 2", "c: 4, not None"]
