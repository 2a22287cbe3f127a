"""Files that are whole or absent: names nobody else writes to, leftovers, directories that cannot be synced."""

import errno
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flare_ds.adapters import card
from flare_ds.adapters.files import SETTINGS, WEIGHTS, read_weights, saved_figures, saved_settings
from flare_ds.exceptions import CheckpointError, FlareError, HostError
from flare_ds.files import ASK_OWNER, new_directory, sweep, sync, write_atomically, write_text
from flare_ds.runs.directory import CACHE, STATE, TRAIN_LOG, RunDirectory
from flare_ds.training.state import read_progress

READERS: dict[str, tuple[Path, Callable[[Path], Any]]] = {
    "a trainer state": (STATE, lambda run: read_progress(run / STATE, "its own")),
    "an adapter's weights": (Path("adapter") / WEIGHTS, lambda run: read_weights(run / "adapter")),
    "an adapter's figures": (Path("adapter") / WEIGHTS, lambda run: saved_figures(run / "adapter")),
    "an adapter's settings": (Path("adapter") / SETTINGS, lambda run: saved_settings(run / "adapter")),
    "an adapter's card": (Path("adapter") / WEIGHTS, lambda run: card._read(run / "adapter")),
    "an adapter's checksum": (Path("adapter") / WEIGHTS, lambda run: RunDirectory(run).adapter_sha256),
    "a record": (Path(CACHE), lambda run: RunDirectory(run).read(CACHE)),
    "a log": (Path(TRAIN_LOG), lambda run: RunDirectory(run).train_log()),
}
"""What reads a file of a run, and which."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name, file in {"progress": STATE, "flare_ds": Path("adapter") / WEIGHTS}.items():
        (tmp_path / file).parent.mkdir()
        save_file({"A": torch.ones(2)}, tmp_path / file, metadata={name: '{"fingerprint": "its own"}'})
    settings = '{"peft_type": "LORA", "flare_ds": {"method": "flare"}}'
    for file, text in {Path("adapter") / SETTINGS: settings, Path(CACHE): "{}", Path(TRAIN_LOG): "{}\n"}.items():
        (tmp_path / file).write_text(text)
    return tmp_path


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("what", READERS)
def test_what_cannot_be_opened_for_want_of_descriptors_is_not_called_damaged(run: Path, what: str, left: int) -> None:
    """Safetensors needs two at once; the others are content with one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + left, hard))
    try:
        READERS[what][1](run)
        refused = None
    except HostError as error:
        refused = error
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert left if refused is None else "ulimit -n" in refused.fix


@pytest.mark.parametrize(("number", "fix"), [(errno.EACCES, ASK_OWNER), (errno.EIO, "check the disk it is on")])
@pytest.mark.parametrize("what", READERS)
def test_what_the_system_does_not_let_us_read_is_not_called_damaged(
    run: Path, monkeypatch: pytest.MonkeyPatch, what: str, number: int, fix: str
) -> None:
    def refuse(path: Path, *args: Any, **named: Any) -> Any:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(FlareError, match=os.strerror(number)) as refused:
        READERS[what][1](run)
    assert refused.value.fix.startswith(fix)


def test_two_containers_with_the_same_process_id_write_to_different_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 7)
    seen: list[Path] = []

    def write(temporary: Path) -> None:
        seen.append(temporary)
        temporary.write_text("outer")
        if len(seen) == 1:
            write_atomically(tmp_path / "a", lambda other: (seen.append(other), other.write_text("inner")))
            assert temporary.read_text() == "outer"

    write_atomically(tmp_path / "a", write)
    assert len(set(seen)) == 2 and (tmp_path / "a").read_text() == "outer"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_weights_may_be_read_by_whom_any_new_file_may_be_read(tmp_path: Path, umask: int, mode: int) -> None:
    """Of safetensors a new file is its owner's alone, whatever the umask says: no group could share a model."""
    tensors, before = {"a": torch.zeros(2)}, os.umask(umask)
    try:
        write_atomically(tmp_path / "one.safetensors", lambda temporary: save_file(tensors, temporary))
        with new_directory(tmp_path / "many") as directory:
            save_file(tensors, directory / "two.safetensors")
            (directory / "tool").touch(0o755)
    finally:
        os.umask(before)
    for path in (tmp_path / "one.safetensors", tmp_path / "many/two.safetensors"):
        assert path.stat().st_mode & 0o777 == mode, path
    assert (tmp_path / "many/tool").stat().st_mode & 0o100, "a program stays one"


def test_a_file_is_synced_as_it_will_be_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, synced = tmp_path / "a", list[tuple[str, str]]()
    place.write_text("old")
    monkeypatch.setattr("flare_ds.files.sync", lambda path: synced.append((path.read_text(), place.read_text())))
    write_text(place, "new")
    assert synced == [("new", "old")] and place.read_text() == "new"


def test_leftovers_of_killed_writers_go_after_a_day_and_nothing_else_does(tmp_path: Path) -> None:
    left = "0123456789abcdef"
    old = [f".a.{left}.tmp", f".b.{left}.tmp"]
    kept = [f".a.{left[::-1]}.tmp", ".a.77.tmp", ".a.xyz.tmp", f"a.{left}.tmp", f".{left}.tmp", f".a.{left}.tmp.gz"]
    for name in old + kept:
        (tmp_path / name).write_text("left")
        age = 0 if name == kept[0] else 2 * 86_400
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    write_text(tmp_path / "a", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"a", *kept}


def test_of_two_that_write_one_directory_the_first_to_end_has_it_whole_and_the_other_is_told(tmp_path: Path) -> None:
    target = tmp_path / "new"
    with pytest.raises(CheckpointError, match="new exists already"), new_directory(target) as slow:
        (slow / "config").write_text("slow")
        with new_directory(target) as fast:
            for name in ("config", "weights"):
                (fast / name).write_text("fast")
        assert (slow / "config").read_text() == "slow"
        (slow / "weights").write_text("slow")
    assert {path.name: path.read_text() for path in target.iterdir()} == {"config": "fast", "weights": "fast"}
    assert list(tmp_path.iterdir()) == [target], "what the other wrote is gone"


def test_a_new_directory_is_synced_with_all_in_it_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []

    def note(path: Path) -> None:
        synced.append((path.name, (tmp_path / "new").exists()))

    monkeypatch.setattr("flare_ds.files.sync", note)
    with new_directory(tmp_path / "new") as directory:
        (directory / "adapter").mkdir()
        (directory / "adapter/weights").write_text("")
        temporary = directory.name
    assert sorted(synced) == sorted([("adapter", False), ("weights", False), (temporary, False)])


def test_a_directory_that_a_killed_writer_left_goes_after_a_day(tmp_path: Path) -> None:
    with new_directory(tmp_path / "made") as directory:
        left, young = (tmp_path / directory.name.replace("made", name) for name in ("left", "young"))
    for path, age in ((left, 2 * 86_400), (young, 0)):
        path.mkdir()
        (path / "weights").write_text("")
        os.utime(path, (time.time() - age,) * 2)
    sweep.cache_clear()
    with new_directory(tmp_path / "new"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"made", "new", young.name}


def test_a_directory_that_cannot_be_synced_is_no_error_but_a_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for code, passes in ((errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)):

        def fail(_: int, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fail)
        for path in (tmp_path / "file", tmp_path):
            if passes and path.is_dir():
                sync(path)
            else:
                with pytest.raises(OSError, match=os.strerror(code)):
                    sync(path)
