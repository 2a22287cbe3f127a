"""`flare-ds prepare` and `flare-ds cache ...`, as a user calls them, on real caches."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from flare_ds.cli import main
from flare_ds.cli.caches import compare
from flare_ds.data.cache import open_cache, verify
from flare_ds.published import is_trash, mark_used, sweep_trash
from tests.toy import toy_settings, write_config, write_data, write_model

DAY = 86_400


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    write_model(root / "model")
    write_data(root / "data", rows=60, languages=("en", "pl", "es"))
    return root


@pytest.fixture(scope="module")
def config(root: Path) -> str:
    settings = toy_settings(root)
    settings["task"] |= {"validation_rows": 9, "test_rows": 10, "max_prompt_tokens": 9}
    return str(write_config(settings))


@pytest.fixture(scope="module")
def built(root: Path, config: str) -> Path:
    assert main(["prepare", config, f"cache_dir={root}/built"]) == 0
    (path,) = (root / "built").glob("multiemo-*")
    return path


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A copy of the cache to do harm to."""
    return Path(shutil.copytree(built, tmp_path / "caches" / built.name))


Said = pytest.CaptureFixture[str]


def said(capsys: Said, *arguments: str | Path, code: int = 0) -> str:
    """Run a verb; what it prints on stdout."""
    capsys.readouterr()
    assert main(list(map(str, arguments))) == code
    return capsys.readouterr().out


def refused(capsys: Said, *arguments: str | Path) -> str:
    """Run a verb that must fail; its message."""
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 1
    message = capsys.readouterr().err
    assert message.count("  fix: ") == 1
    return message


def age(path: Path, seconds: float) -> None:
    """Make a directory and its files look as if written that long ago."""
    for item in (*path.iterdir(), path):
        os.utime(item, (time.time() - seconds,) * 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def shown(directory: Path) -> set[Path]:
    """What is there but for what was given up."""
    return {path for path in directory.iterdir() if not is_trash(path)}


# prepare


OWN = """
{name: own, languages: [en], pools: [train, validation, test], fields: [text], labels: [positive, negative, neutral],
 template: "Review: {text} Sentiment:"}
"""


@pytest.mark.parametrize("sided", [True, False])
def test_labels_that_are_never_trained_and_those_that_are_all_there_is_are_told(
    root: Path, tmp_path: Path, capsys: Said, sided: bool
) -> None:
    """As those of a table that counts them from 1: its rows are all read, each as the label behind its own."""
    words = {"train": ["positive", "negative"], "validation": ["neutral"], "test": ["positive", "neutral"]}
    (tmp_path / "en").mkdir()
    for name, labels in words.items():
        rows = "".join(
            f"{name} {label},{label}\n" for label in (labels if sided else ["positive", "negative", "neutral"])
        )
        (tmp_path / f"en/{name}.csv").write_text(f"text,label\n{rows}")
    (tmp_path / "own.yaml").write_text(OWN)
    own = {"name": "own", "path": str(tmp_path / "own.yaml"), "data_dir": str(tmp_path)}
    settings = toy_settings(root, method="lora", name="own") | {"cache_dir": str(tmp_path / "caches")}
    settings["task"] = own | {"source_language": "en", "target_language": "en", "max_prompt_tokens": 20}
    assert main(["prepare", str(write_config(settings))]) == 0
    told = capsys.readouterr().err
    assert ("train: no row has the label neutral: " in told) == sided
    assert ("validation: every row has the label neutral, so its score says nothing of the others" in told) == sided
    assert "test: every" not in told


def test_prepare_prints_the_path_and_sums_up_what_it_built_or_found(config: str, root: Path, capsys: Said) -> None:
    command = ["prepare", config, f"cache_dir={root}/other"]
    assert main(command) == 0
    first = capsys.readouterr()
    path = Path(first.out.strip())
    assert path.parent == root / "other" and first.out.count("\n") == 1
    verify(path)
    assert "\nbuilt\n" in f"\n{first.err}" and "en → pl" in first.err
    train = open_cache(path).split("train")
    cut = open_cache(path).manifest.splits["train"].truncated
    assert f"train: {len(train)} examples; " in first.err and f"{cut['source']} of source" in first.err
    assert main(command) == 0
    second = capsys.readouterr()
    assert second.out == first.out and "\nfound, whole\n" in f"\n{second.err}"


def test_overrides_may_stand_after_an_option(config: str, root: Path, capsys: Said) -> None:
    path = said(capsys, "prepare", config, "task.test_rows=5", "--workers", "1", "task.target_language=es").strip()
    manifest = open_cache(Path(path)).manifest
    assert manifest.fields["target_language"] == "es" and manifest.splits["test"].rows == 5


# ls, stats


def test_ls_lists_caches_in_every_state_and_nothing_else(copy: Path, root: Path, capsys: Said) -> None:
    caches = copy.parent
    damaged = Path(shutil.copytree(copy, caches / f"moods-en-de-{'0' * 16}"))
    (damaged / "test.labels.npy").unlink()
    headless = Path(shutil.copytree(copy, caches / f"moods-en-fr-{'1' * 16}"))
    (headless / "manifest.json").unlink()
    unfinished = Path(shutil.copytree(headless, caches / f".{copy.name}.0a1b2c3d"))
    states = caches / f"states-cached-{'2' * 16}"
    states.mkdir()
    (states / "manifest.json").write_text('{"format": "something else"}')
    (caches / "README.md").write_text("not a cache")
    (caches / "notes").mkdir()
    age(copy, 3 * DAY + 1)
    heading, *lines = said(capsys, "cache", "ls", caches).splitlines()
    by_path = {line.split()[-1]: line for line in lines}
    states_of = {path: re.search(r" (whole|damaged|unfinished) ", line)[1] for path, line in by_path.items()}
    assert states_of == {
        str(copy): "whole",
        str(damaged): "damaged",
        str(headless): "damaged",
        str(unfinished): "unfinished",
    }
    splits = open_cache(copy).manifest.splits.values()
    rows = " + ".join(str(split.rows) for split in splits)
    assert re.search(rf"tokens +multiemo +en → pl +{re.escape(rows)} +[\d.]+ kB +3 days +whole", by_path[str(copy)])
    assert heading.split() == ["kind", "task", "languages", "rows", "size", "age", "state", "directory"]
    assert len({line.index(str(caches)) for line in lines}) == 1, "columns stand below each other"


def test_ls_of_nowhere(tmp_path: Path, capsys: Said) -> None:
    assert f"no directory {tmp_path}/nowhere" in refused(capsys, "cache", "ls", tmp_path / "nowhere")


def test_stats_counts_what_the_splits_hold(built: Path, capsys: Said) -> None:
    told = said(capsys, "cache", "stats", built)
    cache = open_cache(built)
    for name in ("train", "validation", "test"):
        split = cache.split(name)
        labels = ", ".join(f"{word} {(split.labels == i).sum()}" for i, word in enumerate(cache.labels))
        assert f"{name}: {len(split)} examples\n  labels: {labels}" in told
        for stream in ("source", "target"):
            lengths = [len(split.prompt(stream, row)) for row in range(len(split))]
            place = told.index(f"  {stream} (", told.index(f"\n{name}: "))
            line = told[place:].split("\n")[0]
            assert f"{sum(lengths):,} tokens in prompts of {min(lengths)} to {max(lengths)}" in line
            assert f"median {sorted(lengths)[(len(lengths) - 1) // 2]}, " in line
            assert f"{cache.manifest.splits[name].truncated[stream]} cut" in line
    assert f"\n{cache.manifest.counts['rows_read']} rows read" in told
    assert "max_prompt_tokens: 9" in told


# verify


def test_verify_says_which_of_several_is_damaged_where_and_how_to_rebuild(
    built: Path, copy: Path, capsys: Said
) -> None:
    for name in ("train.target.tokens.npy", "test.labels.npy"):
        flip(copy / name)
    capsys.readouterr()
    assert main(["cache", "verify", str(copy), str(built)]) == 1
    told = capsys.readouterr()
    assert told.out == f"{built}: whole\n"
    assert "train.target.tokens.npy" in told.err and "test.labels.npy" in told.err
    assert "flare-ds prepare CONFIG" in told.err
    (copy / "manifest.json").unlink()
    assert main(["cache", "verify", str(copy)]) == 1
    assert f"{copy} holds no finished cache" in capsys.readouterr().err


def test_verify_of_whole_caches(built: Path, copy: Path, capsys: Said) -> None:
    assert said(capsys, "cache", "verify", built, copy) == f"{built}: whole\n{copy}: whole\n"


# diff


def test_diff_names_the_fields_that_differ(built: Path, config: str, root: Path, capsys: Said) -> None:
    other = said(capsys, "prepare", config, "task.max_prompt_tokens=10").strip()
    assert said(capsys, "cache", "diff", built, other, code=1) == "max_prompt_tokens\n  a  9\n  b  10\n"
    assert said(capsys, "cache", "diff", built, built) == "equal\n"


def test_diff_of_a_config_builds_nothing(built: Path, config: str, root: Path, tmp_path: Path, capsys: Said) -> None:
    assert said(capsys, "cache", "diff", config, built) == "equal\n"
    settings = yaml.safe_load(Path(config).read_text())
    settings["task"]["target_language"] = "es"
    settings["cache_dir"] = str(tmp_path / "caches")
    write_model(tmp_path / "model")
    (tmp_path / "model/tokenizer.json").write_text(
        (root / "model/tokenizer.json").read_text().replace("word19", "word91")
    )
    settings["model"]["base"] = str(tmp_path / "model")
    (tmp_path / "es.yaml").write_text(yaml.safe_dump(settings))
    told = said(capsys, "cache", "diff", built, tmp_path / "es.yaml", code=1)
    named = [line for line in told.splitlines() if not line.startswith(" ")]
    assert {"target_language", "rows_sha256", "tokenizer_sha256"} == set(named)
    assert "  a  'pl'\n  b  'es'\n" in told
    assert not (tmp_path / "caches").exists()


def test_a_field_that_one_side_lacks_differs() -> None:
    assert list(compare({"a": None}, {"b": 2, "c": 3})) == [
        *("b", "  a  (absent)", "  b  2"),
        *("c", "  a  (absent)", "  b  3"),
    ]


# rm


def test_rm_asks_or_needs_yes(copy: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--yes" in refused(capsys, "cache", "rm", copy)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    for answer in ("", "n", "yess"):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        said(capsys, "cache", "rm", copy)
        verify(copy)
    monkeypatch.setattr("builtins.input", lambda question: "y")
    said(capsys, "cache", "rm", copy)
    assert shown(copy.parent) == set()


@pytest.mark.parametrize("kind", ["empty", "files", "file", "absent", "states", "link", "above"])
def test_rm_refuses_what_is_not_a_cache(copy: Path, tmp_path: Path, capsys: Said, kind: str) -> None:
    """And then removes nothing at all, not even the caches named beside it."""
    other = tmp_path / f"moods-en-de-{'0' * 16}"
    if kind in ("empty", "files", "states"):
        other.mkdir()
    if kind == "files":
        np.save(other / "weights.npy", np.zeros(3))
    elif kind == "states":
        (other / "manifest.json").write_text('{"format": "flare_ds source states"}')
    elif kind == "file":
        other.write_text("text")
    elif kind == "link":
        other.symlink_to(copy)
    elif kind == "above":
        other = copy.parent
    before = sorted(tmp_path.rglob("*"))
    assert str(other) in refused(capsys, "cache", "rm", copy, other, "--yes")
    assert sorted(tmp_path.rglob("*")) == before


def test_rm_removes_a_damaged_cache(copy: Path, capsys: Said) -> None:
    (copy / "manifest.json").write_text("{")
    said(capsys, "cache", "rm", copy, "--yes")
    assert shown(copy.parent) == set()


def test_rm_unfinished_leaves_builds_that_are_under_way(copy: Path, capsys: Said) -> None:
    left, running = (copy.with_name(f".{copy.name}.{tag}") for tag in ("00000000", "11111111"))
    for build in (left, running):
        shutil.copytree(copy, build)
        (build / "manifest.json").unlink()
        age(build, 2 * 3600)
    os.utime(running / "train.ids.npy")
    age(copy, 9 * DAY)
    said(capsys, "cache", "rm", "--unfinished", "--in", copy.parent, "--yes")
    assert set(copy.parent.iterdir()) == {copy, running}


def test_rm_unfinished_leaves_what_a_translation_goes_on_with(copy: Path, capsys: Said) -> None:
    """Hours of finished batches; by its age or its name it is removed as anything is."""
    begun = copy.with_name(f".eng_Latn-pol_Latn-{'0' * 16}.partial")
    (begun / "batches").mkdir(parents=True)
    (begun / "batches/0.json").write_text("[]")
    age(begun, 9 * DAY)
    age(begun / "batches", 9 * DAY)
    said(capsys, "cache", "rm", "--unfinished", "--in", copy.parent, "--yes")
    assert set(copy.parent.iterdir()) == {copy, begun}
    assert "unfinished" in said(capsys, "cache", "ls", copy.parent)
    said(capsys, "cache", "rm", "--older-than", "3", "--in", copy.parent, "--yes")
    assert set(copy.parent.iterdir()) == {copy}


def test_rm_takes_no_directory_that_only_has_a_date_in_its_name(copy: Path, capsys: Said) -> None:
    """Eight digits of a date are hexadecimal digits; a build of what is fetched has the name of something fetched."""
    backup, build = copy.with_name(".backup.20250101"), copy.with_name(".gemma3-270m.20250101")
    for directory in (backup, build):
        directory.mkdir()
        (directory / "precious").touch()
        age(directory, 9 * DAY)
    said(capsys, "cache", "rm", "--unfinished", "--in", copy.parent, "--yes")
    said(capsys, "cache", "rm", "--older-than", "3", "--in", copy.parent, "--yes")
    assert backup.exists() and not build.exists()


def test_rm_older_than(copy: Path, capsys: Said) -> None:
    old = Path(shutil.copytree(copy, copy.with_name(f"moods-en-de-{'0' * 16}")))
    age(old, 3 * DAY + 60)
    age(copy, 3 * DAY - 60)
    said(capsys, "cache", "rm", "--older-than", "4", "--in", copy.parent, "--yes")
    assert set(copy.parent.iterdir()) == {copy, old}
    said(capsys, "cache", "rm", "--older-than", "3", "--in", copy.parent, "--yes")
    assert shown(copy.parent) == {copy}


def test_a_cache_that_was_used_lately_is_not_old(copy: Path, capsys: Said) -> None:
    age(copy, 9 * DAY)
    mark_used(copy)
    verify(copy)
    said(capsys, "cache", "rm", "--older-than", "3", "--in", copy.parent, "--yes")
    assert shown(copy.parent) == {copy}


@pytest.mark.parametrize("arguments", [[], ["somewhere", "--unfinished"], ["somewhere", "--older-than", "3"]])
def test_rm_takes_names_or_a_rule(arguments: list[str], capsys: Said) -> None:
    assert "either cache directories or one of" in refused(capsys, "cache", "rm", *arguments, "--yes")


def test_a_removed_cache_is_there_for_its_readers_for_a_day(copy: Path, capsys: Said) -> None:
    """A reader on another host, whom a deleted file would kill, finds all of the files in their new place."""
    age(copy, 9 * DAY)
    said(capsys, "cache", "rm", copy, "--yes")
    assert not copy.exists() and "trash" not in said(capsys, "cache", "ls", copy.parent)
    (left,) = copy.parent.iterdir()
    said(capsys, "cache", "rm", "--unfinished", "--in", copy.parent, "--yes")
    said(capsys, "cache", "rm", "--older-than", "0", "--in", copy.parent, "--yes")
    verify(left)
    os.utime(left, (time.time() - DAY - 60,) * 2)
    sweep_trash(copy.parent)
    assert list(copy.parent.iterdir()) == []


# The process


def test_a_pipe_that_nobody_reads_is_no_error(built: Path) -> None:
    command = [sys.executable, "-m", "flare_ds", "cache", "ls", built.parent]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=buffered)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141
