"""Opening a run: what does not suit its task or its tokens is refused, and its cache is found without the raw data."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import save_file

from flare_ds.cli import main
from flare_ds.config import Config
from flare_ds.data.cache import key, open_cache
from flare_ds.data.cache.key import asked_fields, differing
from flare_ds.evaluation.same_questions import check_same_questions
from flare_ds.exceptions import CacheError, CheckpointError, ConfigError, DataError, FlareError
from flare_ds.locks import release_all
from flare_ds.models.loading import load_tokenizer
from flare_ds.settings import load_config
from flare_ds.tasks.load import task_of
from flare_ds.training import run
from flare_ds.training.run import begin_run
from tests.qa_world import qa_settings, translate_each_anew
from tests.toy import WORDS, toy_settings, word_tokenizer, write_data, write_model


def make(root: Path, **task: object) -> Config:
    settings = toy_settings(root, steps=1)
    return Config.model_validate(settings | {"task": settings["task"] | task})


def _prepare(config: Config, train: bool) -> Path:
    """What `train` and `evaluate` do before they compute."""
    cache = run.open_run(config, train=train)
    if train:
        begin_run(config, cache)
    return cache.path


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    yield
    release_all()


def begin(root: Path) -> None:
    """A run that has trained: it has an adapter, of which nothing is read here."""
    _prepare(make(root), train=True)
    give_adapter(root / "run")


def give_adapter(run_dir: Path) -> None:
    (run_dir / "adapter").mkdir()
    (run_dir / "adapter/adapter_model.safetensors").write_bytes(b"")
    (run_dir / "training.json").write_text("{}")


def test_a_run_says_what_its_tokens_are_made_of(tmp_path: Path) -> None:
    path = _prepare(make(tmp_path), train=True)
    manifest = json.loads((path / "manifest.json").read_text())
    record = json.loads((tmp_path / "run" / "cache.json").read_text())
    assert record == {"key": manifest["key"], "fields": manifest["fields"]}
    assert json.loads((tmp_path / "run" / "base.json").read_text())["name"] == str(tmp_path / "model")
    assert "torch" in json.loads((tmp_path / "run" / "versions.json").read_text())


@pytest.mark.parametrize("opened", [True, False])
def test_a_cache_that_a_run_has_opened_is_not_removed_for_its_age(tmp_path: Path, opened: bool) -> None:
    begin(tmp_path)
    path = _prepare(make(tmp_path), train=False)
    for part in (*path.iterdir(), path):
        os.utime(part, (0, 0))
    if opened:
        _prepare(make(tmp_path), train=False)
    assert main(["cache", "rm", "--older-than", "3", "--in", str(path.parent), "--yes"]) == 0
    assert path.exists() == opened


def test_a_run_that_has_begun_goes_on_with_no_other_tokens(tmp_path: Path) -> None:
    begin(tmp_path)
    assert _prepare(make(tmp_path), train=True).is_dir()
    with pytest.raises(ConfigError, match="max_prompt_tokens=128, not 32") as error:
        _prepare(make(tmp_path, max_prompt_tokens=32), train=True)
    assert str(tmp_path / "run") in error.value.problem and "task.max_prompt_tokens=128" in error.value.fix
    with pytest.raises(ConfigError, match="train_rows=None, not 50"):
        _prepare(make(tmp_path, train_rows=50), train=True)


def test_a_trained_run_is_evaluated_on_other_rows_but_not_through_another_prompt(tmp_path: Path) -> None:
    begin(tmp_path)
    before = contents(tmp_path / "run")
    assert _prepare(make(tmp_path, test_rows=7), train=False) != _prepare(make(tmp_path), train=False)
    with pytest.raises(ConfigError, match="max_prompt_tokens=128, not 32"):
        _prepare(make(tmp_path, max_prompt_tokens=32), train=False)
    assert contents(tmp_path / "run") == before


def test_a_run_that_an_earlier_version_began_is_not_gone_on_with_and_nothing_is_built_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that it has trained is neither refused nor advised to be deleted."""
    begin(tmp_path)
    record, state = tmp_path / "run/cache.json", tmp_path / "run/state/state.safetensors"
    fields = json.loads(record.read_text())["fields"] | {"format_version": 3}
    record.write_text(json.dumps({"key": "e" * 64, "fields": fields}))
    state.parent.mkdir()
    save_file({}, state, metadata={"progress": "of another cache"})
    assert _prepare(make(tmp_path), train=True).is_dir()
    (tmp_path / "run/training.json").unlink()
    monkeypatch.setattr(run, "_cache", lambda *_: pytest.fail("a cache is looked for"))
    with pytest.raises(CheckpointError, match=r"an earlier flare_ds began .* format 3, .* cannot continue it") as told:
        _prepare(make(tmp_path), train=True)
    assert "with that version" in told.value.fix and "delete" not in told.value.fix


def test_a_run_that_an_earlier_version_trained_on_free_answers_is_scored(tmp_path: Path) -> None:
    """Where in its window the answer of a training row stands has changed since; what is asked has not."""
    config = Config.model_validate(qa_settings(tmp_path, steps=1))
    _prepare(config, train=True)
    give_adapter(tmp_path / "run")
    record = tmp_path / "run/cache.json"
    fields = json.loads(record.read_text())["fields"] | {"format_version": 3, "answers": "the first one, on one line"}
    record.write_text(json.dumps({"key": "e" * 64, "fields": fields}))
    for train in (False, True):  # `train RUN --evaluate` only scores it
        assert _prepare(config, train=train).is_dir()
    check_same_questions(config, task_of(config.task), load_tokenizer(config.model))


def test_a_run_of_an_earlier_version_whose_tokens_are_the_same_is_scored(tmp_path: Path) -> None:
    """The format of caches, and what they say beside the tokens, has changed since; its own cache is gone."""
    begin(tmp_path)
    record = tmp_path / "run/cache.json"
    fields = json.loads(record.read_text())["fields"]
    earlier = {name: value for name, value in fields.items() if name != "cluster_fields"} | {"format_version": 1}
    record.write_text(json.dumps({"key": "e" * 64, "fields": earlier}))
    assert _prepare(make(tmp_path), train=False).is_dir()
    record.write_text(json.dumps({"key": "e" * 64, "fields": earlier | {"prompt_template": "another {text}"}}))
    with pytest.raises(CacheError, match=r"has begun with other tokens.*prompt_template"):
        _prepare(make(tmp_path), train=False)


def test_a_run_whose_cache_has_broken_clusters_goes_on_with_it_and_is_scored_with_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translate_each_anew(monkeypatch)
    settings = qa_settings(tmp_path, steps=1)
    settings["task"] |= {"target_language": "es", "sides": "translated"}
    config = Config.model_validate(settings)
    with monkeypatch.context() as earlier:
        earlier.setattr(key, "asked_fields", lambda *given: asked_fields(*given) | {key.CLUSTERS: None})
        begun = _prepare(config, train=True)
        give_adapter(tmp_path / "run")
    assert _prepare(config, train=True) == begun
    scored = open_cache(_prepare(config, train=False)).manifest
    assert differing(scored.fields, open_cache(begun).manifest.fields) == [key.CLUSTERS]


def test_a_run_of_an_earlier_version_with_a_task_in_code_is_scored_on_other_rows(tmp_path: Path) -> None:
    """What its prompt does to a text was not told then; where it was told, it must be the same."""
    (tmp_path / "own.py").write_text("from flare_ds.tasks import MultiEmo\n\nTASK = MultiEmo()\n")
    own = {"path": str(tmp_path / "own.py")}
    _prepare(make(tmp_path, **own), train=True)
    give_adapter(tmp_path / "run")
    record = tmp_path / "run/cache.json"
    told = json.loads(record.read_text())
    earlier = {name: value for name, value in told["fields"].items() if name != key.PROBES}
    for untold in (earlier, earlier | {key.PROBES: None}):
        record.write_text(json.dumps(told | {"fields": untold}))
        assert _prepare(make(tmp_path, test_rows=7, **own), train=False).is_dir()
    record.write_text(json.dumps(told | {"fields": earlier | {key.PROBES: "another"}}))
    with pytest.raises(CacheError, match=f"has begun with other tokens.*{key.PROBES}"):
        _prepare(make(tmp_path, test_rows=8, **own), train=False)


def test_a_run_whose_task_says_another_prompt_now_is_not_scored(tmp_path: Path) -> None:
    """Settings and base are the same, and yet the tokens of the cache are others: the tokenizer changed."""
    begin(tmp_path)
    word_tokenizer([*WORDS[:6], "more", *WORDS[7:]]).save_pretrained(tmp_path / "model")
    with pytest.raises(CacheError, match="tokenizer_sha256"):
        _prepare(make(tmp_path, test_rows=7), train=False)


def test_a_run_that_has_not_begun_may_change(tmp_path: Path) -> None:
    _prepare(make(tmp_path), train=True)
    assert _prepare(make(tmp_path, max_prompt_tokens=32), train=True).is_dir()
    assert load_config(tmp_path / "run").task.max_prompt_tokens == 32


def test_smaller_batches_are_accepted_and_kept(tmp_path: Path) -> None:
    begin(tmp_path)
    before = contents(tmp_path / "run")
    _prepare(load_config(tmp_path / "run", ["train.micro_batch_size=2"]), train=False)
    assert contents(tmp_path / "run") == before
    _prepare(load_config(tmp_path / "run", ["train.micro_batch_size=2"]), train=True)
    assert load_config(tmp_path / "run").train.micro_batch_size == 2
    assert {name for name, text in contents(tmp_path / "run").items() if before.get(name) != text} == {"config.yaml"}


def contents(directory: Path) -> dict[str, bytes]:
    """Every byte, but the lock of this process."""
    files = {str(file.relative_to(directory)): file for file in directory.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if name != ".lock"}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A run whose raw data is gone; beside its cache lies another of the same languages."""
    _prepare(make(tmp_path, test_rows=7), train=True)
    begin(tmp_path)
    shutil.rmtree(tmp_path / "data")
    return tmp_path


def cache_of(root: Path) -> Path:
    """The cache that the run says is its own."""
    key = json.loads((root / "run/cache.json").read_text())["key"]
    (cache,) = (path for path in (root / "cache").iterdir() if path.name.endswith(f"-{key[:16]}"))
    return cache


@pytest.mark.parametrize("train", [True, False])
def test_a_run_goes_on_without_the_raw_data_and_the_tokenizer(bare: Path, train: bool) -> None:
    (bare / "model/tokenizer.json").unlink()
    before = contents(bare / "run")
    assert _prepare(load_config(bare / "run", ["evaluate.batch_size=auto"]), train=train) == cache_of(bare)
    assert contents(bare / "run") == before


def test_a_new_run_finds_the_cache_of_its_settings_without_the_raw_data(bare: Path) -> None:
    """Also under another seed and method, and with another base of the same tokenizer."""
    write_model(bare / "tuned", seed=3)
    settings = toy_settings(bare, name="other", method="lora", seed=7)
    settings["model"] |= {"base": str(bare / "tuned")}
    assert _prepare(Config.model_validate(settings), train=True) == cache_of(bare)


def test_a_new_run_sees_that_the_raw_data_changed(tmp_path: Path) -> None:
    first = _prepare(make(tmp_path), train=True)
    write_data(tmp_path / "data", seed=1)
    assert _prepare(Config.model_validate(toy_settings(tmp_path, name="other")), train=True) != first


def test_the_recorded_cache_is_found_by_its_key_and_opened_only_whole(bare: Path) -> None:
    cache_of(bare).rename(bare / "cache/renamed")
    assert _prepare(load_config(bare / "run"), train=False) == bare / "cache/renamed"
    (bare / "cache/renamed/test.labels.npy").unlink()
    with pytest.raises(CacheError, match="cannot be built again"):
        _prepare(load_config(bare / "run"), train=False)


def test_a_cache_that_is_gone_is_built_again_from_the_raw_data(tmp_path: Path) -> None:
    begin(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    path = _prepare(load_config(tmp_path / "run"), train=False)
    assert json.loads((tmp_path / "run/cache.json").read_text())["key"].startswith(path.name.rpartition("-")[2])


@pytest.mark.parametrize("train", [True, False])
def test_a_run_without_cache_and_data_says_what_to_do(bare: Path, train: bool) -> None:
    key = json.loads((bare / "run/cache.json").read_text())["key"]
    shutil.rmtree(bare / "cache")
    with pytest.raises(CacheError, match="cannot be built again") as error:
        _prepare(load_config(bare / "run"), train=train)
    assert key[:16] in error.value.problem and f"cache_dir='{bare}/cache'" in error.value.problem
    assert f"*-{key[:16]}" in error.value.fix and "set cache_dir" in error.value.fix


def test_other_rows_are_another_cache(bare: Path) -> None:
    """One that was asked for before is found; any other is prepared as ever, which takes the raw data."""
    assert _prepare(load_config(bare / "run", ["task.test_rows=7"]), train=False) != cache_of(bare)
    for override in ("task.test_rows=8", "task.data_dir=elsewhere"):
        with pytest.raises(DataError):
            _prepare(load_config(bare / "run", [override]), train=False)


REFUSED = [
    (True, ["train.learning_rate=0.5"], "train.learning_rate=0.01, not 0.5"),
    (True, ["train.seed=3", "adapter.r=4"], "adapter.r=8, not 4; train.seed=1, not 3"),
    (True, ["method=lora"], "method='flare', not 'lora'"),
    (True, ["task.max_prompt_tokens=32"], "task.max_prompt_tokens=128, not 32"),
    (True, ["task.target_language=de"], "task.target_language='pl', not 'de'"),
    (True, ["model.base={other}"], "its contents differ"),
    (True, ["model.base={root}/nowhere"], "is not a directory"),
    (False, ["method=lora"], "method='flare', not 'lora'"),
    (False, ["train.seed=3"], "train.seed=1, not 3"),
    (False, ["train.steps=9"], "train.steps=1, not 9"),
    (False, ["adapter.r=4"], "adapter.r=8, not 4"),
    (False, ["task.train_rows=9"], "task.train_rows=None, not 9"),
    (False, ["task.max_prompt_tokens=32"], "task.max_prompt_tokens=128, not 32"),
    (False, ["model.base={other}"], "its contents differ"),
    (False, ["task.data_dir={root}/nowhere"], "nowhere"),
    (False, ["task.test_rows=5", "train.objective=vocabulary"], "train.objective='labels', not 'vocabulary'"),
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kept")
    begin(root)
    release_all()
    write_model(root / "other", seed=1)
    return root


@pytest.mark.parametrize(("train", "overrides", "problem"), REFUSED)
def test_a_refused_command_leaves_every_byte_as_it_was(
    kept: Path, train: bool, overrides: list[str], problem: str
) -> None:
    before = contents(kept / "run")
    words = [word.format(root=kept, other=kept / "other") for word in overrides]
    with pytest.raises(FlareError) as error:
        _prepare(load_config(kept / "run", words), train=train)
    assert problem in error.value.problem and error.value.fix
    assert contents(kept / "run") == before and not (kept / "run/.lock").exists()


def test_what_is_refused_before_it_begins_leaves_no_directory(kept: Path) -> None:
    settings = toy_settings(kept, name="new")
    settings["task"] |= {"data_dir": str(kept / "nowhere")}
    with pytest.raises(FlareError):
        _prepare(Config.model_validate(settings), train=True)
    with pytest.raises(CheckpointError, match=r"has not ended \(not started\)"):
        _prepare(Config.model_validate(toy_settings(kept, name="new")), train=False)
    assert not (kept / "new").exists()


def test_a_base_that_only_moved_is_the_same(kept: Path, tmp_path: Path) -> None:
    shutil.copytree(kept / "model", tmp_path / "moved")
    assert _prepare(load_config(kept / "run", [f"model.base={tmp_path}/moved"]), train=False).is_dir()


@pytest.mark.parametrize("how", ["moved alone", "moved with all", "copied", "linked"])
def test_a_run_is_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """From whatever working directory; begun with paths relative to another."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    begin(Path())
    release_all()
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "backup"
    if how == "moved with all":
        Path("project").rename("elsewhere")
        place = Path("elsewhere/run")
    elif how == "copied":
        shutil.copytree("project/run", place)
    elif how == "linked":
        place.symlink_to("project/run")
    else:
        Path("project/run").rename(place)
    config = load_config(place)
    assert config.run_dir == str(place)
    for train in (False, True):
        assert _prepare(config, train=train).is_dir()
    assert Path(config.model.base).is_dir() and Path(config.cache_dir).is_dir()


def test_free_answers_need_the_whole_vocabulary(tmp_path: Path) -> None:
    settings = toy_settings(tmp_path)
    config = Config.model_validate(settings | {"task": {"name": "tydiqa", "target_language": "fi"}})
    with pytest.raises(ConfigError, match=r"train\.objective='labels', but the answers of task tydiqa are free text"):
        _prepare(config, train=True)
