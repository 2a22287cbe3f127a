"""All kinds of published directories under one roof: listed, verified, removed; and what was written of old is read."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flare_ds.cli import main
from flare_ds.data.cache import open_cache, prepare_cache
from flare_ds.data.states import open_store
from flare_ds.exceptions import CacheError, FlareError
from flare_ds.fetch.fetch import fetch
from flare_ds.fetch.record import is_of
from flare_ds.fetch.sources import Source
from flare_ds.files import ASK_OWNER
from flare_ds.kept import Kind, kept_in
from flare_ds.published import FileRecord, check_sizes, is_trash, publishing
from flare_ds.translation.run import translate_jobs
from flare_ds.translation.store import TRANSLATION, find_translation, read_translation
from tests.data.cache.moods import moods_config, word_tokenizer, write_data
from tests.data.test_states import STORE, write_store
from tests.translation.rows import Program, job, random_rows, settings

KINDS = ("tokens", "states", "translation", "fetched")
CONTENT = {
    "tokens": "test.labels.npy",
    "states": "train.states",
    "translation": "rows.jsonl",
    "fetched": "deep/content",
}
SOURCE = Source("tiny", "a licence", (), lambda files, directory: unpack(directory), 1)


def unpack(directory: Path) -> None:
    (directory / "deep").mkdir()
    (directory / "deep/content").write_text("content")


def one_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """One of each kind, all in one directory."""
    monkeypatch.setenv("FLARE_DS_HOME", str(tmp_path))
    Program(tmp_path / "program", monkeypatch)
    write_data(tmp_path / "data")
    here = tmp_path / "caches"
    translate = settings(tmp_path).model_copy(update={"directory": str(here)})
    return {
        "tokens": prepare_cache(moods_config(tmp_path), word_tokenizer()),
        "states": write_store(here).path,
        "translation": translate_jobs([job(random_rows(3))], translate)[0],
        "fetched": fetch(SOURCE, here / "tiny"),
    }


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    return one_of_each(tmp_path, monkeypatch)


def readers(made: dict[str, Path], root: Path) -> dict[str, Callable[[], object]]:
    """How each is used; False where it must be made again."""
    translate = settings(root).model_copy(update={"directory": str(root / "caches")})
    rows = random_rows(3)
    return {
        "tokens": lambda: open_cache(made["tokens"]),
        "states": lambda: open_store(made["states"], key=STORE.key),
        "translation": lambda: list(read_translation(find_translation(job(rows), translate), rows)),
        "fetched": lambda: is_of(SOURCE, made["fetched"]),
    }


def test_every_kind_is_listed_verified_and_removed(made: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    here = made["tokens"].parent
    assert main(["cache", "ls", str(here)]) == 0
    lines = {line.split()[-1]: line.split() for line in capsys.readouterr().out.splitlines()[1:]}
    assert {path: line[0] for path, line in lines.items()} == {str(path): kind for kind, path in made.items()}
    assert all("whole" in line for line in lines.values()) and "eng_Latn" in lines[str(made["translation"])]
    assert main(["cache", "verify", *map(str, made.values())]) == 0
    (here / "README.md").touch()
    every = [[here], [*here.iterdir()], [*made.values(), here / "requests"]]  # as `caches` and `caches/*` are typed
    for typed in every:
        capsys.readouterr()
        assert main(["cache", "verify", *map(str, typed)]) == 0
        assert sorted(capsys.readouterr().out.splitlines()) == sorted(f"{path}: whole" for path in made.values())
    assert main(["cache", "verify", str(here / "README.md"), str(here / "requests")]) == 1
    assert "holds no finished cache" in capsys.readouterr().err
    assert main(["cache", "verify", str(here), str(here / "gone")]) == 1
    for kind, name in CONTENT.items():
        flip(made[kind] / name)
    capsys.readouterr()
    assert main(["cache", "verify", *map(str, made.values())]) == 1
    told = capsys.readouterr()
    assert told.out == "" and all(f"the content of {name} was changed" in told.err for name in CONTENT.values())
    assert main(["cache", "rm", "--yes", *map(str, made.values())]) == 0
    assert all(is_trash(path) or path.name == "requests" for path in here.iterdir() if path.is_dir())


def test_all_of_a_directory_is_synced_before_it_has_its_name_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file as it is at last, and each directory's entries: a power cut leaves all of it, or nothing."""
    synced, unsynced, named, renamed = dict[int, tuple[int, int]](), list[str](), set[int](), list[Path]()
    rename = Path.rename

    def looks(state: os.stat_result) -> tuple[int, int]:
        return state.st_size, state.st_mtime_ns

    def note(descriptor: int) -> None:
        state = os.fstat(descriptor)
        synced[state.st_ino] = looks(state)
        named.discard(state.st_ino)

    def give_name(path: Path, name: Path) -> Path:
        for part in (path, *path.rglob("*")):
            state = part.stat()
            if synced.get(state.st_ino) != looks(state):
                unsynced.append(f"{name.name}/{part.relative_to(path)}")
        renamed.append(rename(path, name))
        named.add(name.parent.stat().st_ino)
        return name

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", give_name)
    made = one_of_each(tmp_path, monkeypatch)
    assert renamed == [*made.values()] and unsynced == [] and not named


def test_a_link_is_not_removed_but_what_it_leads_to(made: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    link = made["fetched"].parent.parent / "link"
    link.symlink_to(made["fetched"])
    assert main(["cache", "verify", str(link)]) == 0
    assert main(["cache", "rm", "--yes", str(link)]) == 1
    assert f"is a link to {made['fetched']}\n  fix: give that directory" in capsys.readouterr().err
    assert main(["cache", "rm", "--yes", str(made["fetched"])]) == 0 and not link.exists()


def test_what_was_fetched_is_not_removed_by_its_age(made: dict[str, Path]) -> None:
    here = made["tokens"].parent
    assert main(["cache", "rm", "--older-than", "0", "--in", str(here), "--yes"]) == 0
    assert {kind for kind, path in made.items() if path.exists()} == {"fetched"}


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_that_was_changed_is_noticed(made: dict[str, Path], kind: str, tmp_path: Path) -> None:
    read = readers(made, tmp_path)[kind]
    assert read() is not False
    (manifest,) = {*made[kind].glob("manifest.json"), *made[kind].glob("fetched.json")}
    whole = manifest.read_text()
    manifest.write_text(whole.replace("\n ", "\n  ", 1))
    try:
        assert read() is False
    except FlareError as refused:
        assert "was changed after it was written" in refused.problem


def test_what_was_written_before_manifests_told_all_checksums_is_read(made: dict[str, Path], tmp_path: Path) -> None:
    record = made["fetched"] / "fetched.json"
    content = json.loads(record.read_text())
    for later in ("contents", "checksum"):
        del content[later]
    record.write_text(json.dumps(content, indent=2) + "\n")
    assert readers(made, tmp_path)["fetched"]() is not False
    assert main(["cache", "verify", str(made["fetched"])]) == 1, "it cannot be known"


def test_a_build_that_cannot_be_told_is_unfinished(made: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    here = made["tokens"].parent
    for kind, path in made.items():
        name = "gemma3-270m" if kind == "fetched" else path.name  # which has no key: it is told by what is fetched
        build = here / f".{name}.0123abcd"
        shutil.copytree(path / "deep" if kind == "fetched" else path, build)
        for manifest in build.glob("manifest.json"):
            manifest.unlink()
    capsys.readouterr()
    main(["cache", "ls", str(here)])
    assert capsys.readouterr().out.count("unfinished") == len(KINDS)


@pytest.mark.parametrize("linked", ["nothing", "damaged", "whole", "a file"])
def test_a_link_that_leads_to_nothing_whole_makes_way(tmp_path: Path, linked: str) -> None:
    """Caches that were moved to a disk, which is gone now, and linked."""

    def check(directory: Path) -> None:
        if not (directory / "whole").exists():
            raise CacheError("not whole", fix="")

    place, there = tmp_path / "caches/cache", tmp_path / linked
    place.parent.mkdir()
    place.symlink_to(there)
    if linked == "a file":
        there.touch()
    elif linked != "nothing":
        there.mkdir()
        (there / linked).touch()
    with publishing(place, check, elsewhere="") as partial:
        (partial / "whole").write_text("new")
    assert place.is_symlink() == (linked == "whole")
    assert (place / "whole").read_text() == ("" if linked == "whole" else "new")
    assert [*place.parent.iterdir()] == [place] and there.exists() == (linked != "nothing")


@pytest.mark.parametrize("name", ["seen-0123456789abcdef", ".seen-0123456789abcdef.0123abcd"])
def test_what_is_removed_or_finished_while_it_is_looked_at_is_not_there(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "manifest.json").write_text("{}")

    def gone(directory: Path) -> tuple[str, str, str]:
        shutil.rmtree(directory)
        return "", "", ""

    kind = Kind(
        name="seen",
        manifest="manifest.json",
        is_manifest=lambda content: True,
        file="",
        files=lambda directory: {},
        damaged=lambda directory, error: CacheError(str(error), fix=""),
        about=gone,
    )
    assert kept_in(tmp_path, [kind]) == []


def test_a_file_that_goes_while_it_is_looked_at_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda path: True)  # as it was a moment ago
    with pytest.raises(ValueError, match="is missing"):
        check_sizes(tmp_path, {"gone": FileRecord(bytes=1, sha256="")})


UNREAD = [
    ("tokens", "manifest.json"),
    ("tokens", "train.labels.npy"),
    ("states", "manifest.json"),
    ("states", "train.offsets.npy"),
    ("translation", "manifest.json"),
    ("translation", "rows.jsonl"),
]


@pytest.mark.parametrize(("number", "fix"), [(errno.EACCES, ASK_OWNER), (errno.EIO, "check the disk it is on")])
def test_nothing_that_the_system_does_not_let_us_read_is_to_be_deleted(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fix: str
) -> None:
    open_whole = Path.open
    uses = readers(made, tmp_path) | {
        "tokens": lambda: open_cache(made["tokens"]).split("train"),
        "states": lambda: open_store(made["states"], key=STORE.key).split("train"),
    }
    for kind, name in UNREAD:

        def refuse(path: Path, *args: Any, unread: Path = made[kind] / name, **named: Any) -> Any:
            if path == unread:
                raise OSError(number, os.strerror(number), str(path))
            return open_whole(path, *args, **named)

        with monkeypatch.context() as failing:
            failing.setattr(Path, "open", refuse)
            asked = [uses[kind], *([lambda: TRANSLATION.verify(made["translation"])] if kind == "translation" else [])]
            for use in asked:
                with pytest.raises(FlareError, match=os.strerror(number)) as refused:
                    use()
                assert refused.value.fix.startswith(fix), (kind, name)
