"""Which cache answered some settings before: found by its name, without a look at others; nothing is hashed twice."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from flare_ds.config import Config, ModelConfig
from flare_ds.data.cache import prepare_cache, reader, requests
from flare_ds.data.cache.requests import remembered, stored
from flare_ds.data.parallel import translation_jobs
from flare_ds.published import build_name
from flare_ds.tasks.load import task_of
from flare_ds.translation.run import translate_jobs
from tests.data.cache.moods import moods_config, word_tokenizer
from tests.translation.rows import Program, settings


@pytest.fixture
def made(root: Path) -> dict[Path, Config]:
    """Three caches, and what they were built for."""
    word_tokenizer().save_pretrained(root / "model")
    configs = [moods_config(root, target_language=language) for language in ("de", "fr", "pl")]
    configs = [
        config.model_copy(update={"model": config.model.model_copy(update={"base": str(root / "model")})})
        for config in configs
    ]
    return {prepare_cache(config, word_tokenizer()): config for config in configs}


def test_one_manifest_is_read_to_find_a_cache(made: dict[Path, Config], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = reader.read_manifest
    monkeypatch.setattr(reader, "read_manifest", lambda path: read.append(path) or real(path))
    for path, config in made.items():
        cache = remembered(config)
        assert cache is not None and cache.path == path
    assert read == list(made)


def test_the_files_of_a_tokenizer_are_hashed_once(made: dict[Path, Config], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, digest: read.append(file.name) or real(file, digest))
    for config in (*made.values(), *made.values()):
        assert remembered(config) is not None
    assert len(read) == len(set(read))


def test_a_cache_is_found_whatever_it_is_called_unless_it_is_not_whole(made: dict[Path, Config]) -> None:
    path = next(iter(made))
    key = reader.open_cache(path).key
    damaged = path.with_name(f"another-{path.name}")
    path.rename(damaged)
    found = stored(path.parent, key)
    assert found is not None and found.path == damaged
    (damaged / "test.labels.npy").unlink()
    assert stored(path.parent, key) is None and stored(path.parent / "nowhere", key) is None
    (*_, other) = made
    build = other.rename(build_name(other, "0123abcd"))
    assert stored(path.parent, reader.open_cache(build).key) is None


def test_what_an_earlier_version_read_otherwise_is_looked_for_by_its_rows(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = moods_config(root)
    path = prepare_cache(config, word_tokenizer())
    assert remembered(config) is not None
    monkeypatch.setattr(requests, "_VERSION", requests._VERSION + 1)
    assert remembered(config) is None
    assert prepare_cache(config, word_tokenizer()) == path and remembered(config) is not None


OWN = """
from pathlib import Path
from flare_ds.tasks import Row
from tests.data.cache.moods import Moods

class Mine(Moods):
    def read(self, data_dir, language, pool):
        end = Path(data_dir or PLACE).read_text()
        for row in super().read(DATA, language, pool):
            yield Row(row.id, {"text": f"{row.fields['text']} {end}"}, row.label)

TASK = Mine()
"""


@pytest.mark.parametrize("told", [False, True])
def test_other_rows_of_a_task_in_python_are_noticed(root: Path, tmp_path: Path, told: bool) -> None:
    """Also of one that reads a single file, or is given nothing: then only it knows where it reads."""
    place = tmp_path / "end.txt"
    (tmp_path / "own.py").write_text(OWN.replace("PLACE", repr(str(place))).replace("DATA", repr(str(root / "data"))))
    place.write_text("word")
    config = moods_config(root, path=str(tmp_path / "own.py"), data_dir=str(place) if told else None)
    prepare_cache(config, word_tokenizer())
    assert remembered(config) is not None
    place.write_text("other")
    assert remembered(config) is None
    place.unlink()
    assert remembered(config) is not None, "what is gone cannot have changed"


OWN_TABLE = """
{name: own, languages: [en, de], pools: [all], fields: [text], columns: {text: COLUMN}, labels: [bad, good],
 template: "say : {text} mood :"}
"""


def test_another_task_file_asks_for_other_rows_though_it_asks_the_same_of_them(root: Path) -> None:
    """The prompt and the label words are as they were, but the text is that of another column."""
    for language in ("en", "de"):
        (root / "data" / language).mkdir()
        rows = "".join(f"red{n},blue{n},{('bad', 'good')[n % 2]}\n" for n in range(40))
        (root / f"data/{language}/all.csv").write_text(f"one,other,label\n{rows}")
    file, found = root / "own.yaml", list[Path]()
    for column in ("one", "other"):
        file.write_text(OWN_TABLE.replace("COLUMN", column))
        config = moods_config(root, "own", path=str(file))
        assert remembered(config) is None, column
        found.append(prepare_cache(config, word_tokenizer()))
    assert found[0] != found[1] and remembered(config).path == found[1]


@pytest.mark.parametrize("beside", ["config: {en: ../english, de: ../german}", "splits: {all: ../../english/all}"])
def test_other_tables_beside_the_directory_of_the_data_are_noticed(root: Path, beside: str) -> None:
    """Where a task's `config` or `splits` leads out of it."""
    folders = {"en": "english", "de": "german"}
    for language, folder in folders.items():
        (root / "data" / language).mkdir()
        (root / folder).mkdir()
        rows = "".join(f"{folder}{n},{('bad', 'good')[n % 2]}\n" for n in range(40))
        (root / folder / "all.csv").write_text(f"text,label\n{rows}")
    file = root / "own.yaml"
    file.write_text(OWN_TABLE.replace("COLUMN", "text").replace("pools:", f"{beside}, pools:"))
    config = moods_config(root, "own", path=str(file))
    prepare_cache(config, word_tokenizer())
    assert remembered(config) is not None
    with (root / "english/all.csv").open("a") as table:
        table.write("another,good\n")
    assert remembered(config) is None
    shutil.rmtree(root / "english")
    shutil.rmtree(root / "german")
    assert remembered(config) is not None, "what is gone cannot have changed"


def test_the_same_rows_without_the_shared_passages_are_another_request(root: Path) -> None:
    prepare_cache(moods_config(root), word_tokenizer())
    assert remembered(moods_config(root)) is not None
    assert remembered(moods_config(root, drop_shared_passages=True)) is None


def test_the_same_tokenizer_files_beside_another_kind_of_model_are_another_tokenizer(root: Path) -> None:
    """They are read by the kind: a Qwen2 takes each digit alone, whatever tokenizer.json says."""
    kinds = {"llama": "llama", "other_llama": "llama", "qwen": "qwen2"}
    for name, kind in kinds.items():
        word_tokenizer().save_pretrained(root / name)
        (root / name / "config.json").write_text(json.dumps({"model_type": kind}))
    on = {name: moods_config(root).model_copy(update={"model": ModelConfig(base=str(root / name))}) for name in kinds}
    prepare_cache(on["llama"], word_tokenizer())
    assert remembered(on["other_llama"]) is not None and remembered(on["qwen"]) is None


def test_a_changed_file_in_a_linked_folder_is_noticed(root: Path) -> None:
    (root / "elsewhere").mkdir()
    (root / "data/more").symlink_to(root / "elsewhere")
    (root / "elsewhere/back").symlink_to(root / "data")
    (root / "elsewhere/rows.txt").write_text("a")
    config = moods_config(root)
    prepare_cache(config, word_tokenizer())
    assert remembered(config) is not None
    (root / "elsewhere/rows.txt").write_text("other")
    assert remembered(config) is None


def test_caches_and_runs_beside_the_data_are_no_data(root: Path) -> None:
    (root / "data/en.txt").rename(root / "en.txt")
    config = moods_config(root, data_dir=str(root))
    prepare_cache(config, word_tokenizer())
    run = root / "runs/one"
    run.mkdir(parents=True)
    for name in ("config.yaml", "cache.json", "train_log.jsonl"):
        (run / name).write_text("{}")
    (root / "out/planned").mkdir(parents=True)
    for name in ("sweep.json", "planned/config.yaml"):  # of a sweep, whose planned runs have no cache yet
        (root / "out" / name).write_text("{}")
    assert remembered(config) is not None
    (root / "en.txt").write_text("other")
    assert remembered(config) is None


def test_a_file_that_goes_while_it_is_looked_at_is_no_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = moods_config(root)
    prepare_cache(config, word_tokenizer())
    going, real = root / "data/.tmp", Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        state = real(path, **options)
        if path == going:
            path.unlink()
        return state

    going.write_text("a")
    monkeypatch.setattr(Path, "stat", stat)
    assert remembered(config) is None and not going.exists()
    (root / "data/.gone").symlink_to(root / "nowhere")
    assert remembered(config) is not None


@pytest.fixture
def translated(root: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A config whose rows are translated by the stand-in of apertium, and whose cache is built."""
    Program(root / "program", monkeypatch)
    config = moods_config(root, target_language="es", sides="translated")
    (root / "ct2").mkdir()
    (root / "ct2/model.bin").write_text("weights")
    config = config.model_copy(update={"translate": settings(root, model=str(root / "ct2"), batch_size=1000)})
    translate(config)
    prepare_cache(config, word_tokenizer())
    return config


def translate(config: Config) -> list[Path]:
    return translate_jobs(translation_jobs(task_of(config.task), config.task), config.translate)


def test_a_new_translation_is_not_taken_for_the_old_one(
    root: Path, translated: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = remembered(translated)
    shutil.rmtree(root / "translations")
    assert old is not None and remembered(translated).key == old.key, "a cache is enough"
    translate(translated)
    assert remembered(translated).key == old.key, "the new translation says the same"
    shutil.rmtree(root / "translations")
    Program(root / "program", monkeypatch, first="text = text.upper()")
    translate(translated)
    assert remembered(translated) is None
    new = reader.open_cache(prepare_cache(translated, word_tokenizer()))
    assert new.key != old.key and remembered(translated).key == new.key


@pytest.mark.parametrize(
    "changed", [{"engine": "nllb"}, {"model": "another"}, {"beams": 4}, {"drop": ("loop",)}], ids=str
)
def test_another_translation_is_another_request(translated: Config, changed: dict[str, object]) -> None:
    assert remembered(translated) is not None
    other = translated.translate.model_copy(update=changed)
    assert remembered(translated.model_copy(update={"translate": other})) is None
    elsewhere = translated.translate.model_copy(update={"batch_size": 7})  # which says nothing of what is translated
    assert remembered(translated.model_copy(update={"translate": elsewhere})) is not None


def test_a_model_that_was_converted_again_is_noticed(root: Path, translated: Config) -> None:
    (root / "ct2/model.bin").write_text("other weights")
    assert remembered(translated) is None
    shutil.rmtree(root / "ct2")
    shutil.rmtree(root / "data")
    shutil.rmtree(root / "translations")
    assert remembered(translated) is not None, "what is gone cannot have changed"
