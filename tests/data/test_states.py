"""The store of source states on disk: exact, memory-mapped, refused when too large, whole or absent."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flare_ds.data.states import StateStore, StoreId, find_store, open_store, states_file
from flare_ds.data.states_writer import Layout, StoreWriter, check_size
from flare_ds.exceptions import CacheError, ConfigError, HostError

LENGTHS = {"train": np.array([3, 1, 0, 5]), "test": np.array([2, 2])}
STORE = StoreId("cached", {"base": "abc", "pairing": "output"})


def make_states(dtype: torch.dtype, seed: int = 0) -> dict[str, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        split: [torch.randn(n, 2, 3, generator=generator).to(dtype) for n in lengths]
        for split, lengths in LENGTHS.items()
    }


def make_writer(cache_dir: Path, dtype: torch.dtype = torch.float32, tag: str = "00000001") -> StoreWriter:
    return StoreWriter(STORE, Layout(LENGTHS, (2, 3), dtype), cache_dir, tag)


def write_rows(writer: StoreWriter, states: dict[str, list[torch.Tensor]]) -> None:
    for split, rows in states.items():
        for row in reversed(range(len(rows))):  # any order
            writer.write(split, row, rows[row])
    writer.sync()


def write_store(cache_dir: Path, dtype: torch.dtype = torch.float32) -> StateStore:
    writer = make_writer(cache_dir, dtype)
    writer.reserve()
    write_rows(writer, make_states(dtype))
    return writer.publish()


def assert_holds(store: StateStore, states: dict[str, list[torch.Tensor]]) -> None:
    for split, rows in states.items():
        opened = store.split(split)
        assert len(opened) == len(rows)
        for row, expected in enumerate(rows):
            found = opened.states(row)
            assert found.dtype == expected.dtype and torch.equal(found, expected), (split, row)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_states_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    assert find_store(STORE, tmp_path) is None
    write_store(tmp_path, dtype)
    found = find_store(STORE, tmp_path)
    assert found is not None and found.path.name.startswith("states-cached-")
    assert_holds(found, make_states(dtype))
    assert states_file(found.path, "train").stat().st_size == 9 * 2 * 3 * dtype.itemsize


def test_an_opened_store_reads_the_file_and_not_a_copy(tmp_path: Path) -> None:
    store = write_store(tmp_path)
    opened = store.split("test")
    assert opened.states(1).ne(0).all()
    with states_file(store.path, "test").open("r+b") as file:
        file.write(bytes(4 * 2 * 3 * 4))
    assert opened.states(1).eq(0).all()


def test_every_field_of_the_key_counts(tmp_path: Path) -> None:
    others = [StoreId("cached", {**STORE.fields, name: "other"}) for name in (*STORE.fields, "new")]
    others += [StoreId("mt_encoder", STORE.fields)]
    assert len({store.directory(tmp_path) for store in [STORE, *others]}) == 5
    assert StoreId("cached", dict(reversed(STORE.fields.items()))).key == STORE.key


def test_a_store_larger_than_allowed_is_refused_with_its_size(tmp_path: Path) -> None:
    layout = Layout({"train": np.array([1_000_000, 500_000])}, (32, 4096), torch.bfloat16)
    with pytest.raises(ConfigError, match=r"393 GB \(1,500,000 tokens x 32 states x 4096 wide x 2 bytes\)") as refused:
        check_size(layout, tmp_path, max_gb=20)
    assert "source.max_store_gb=20" in refused.value.problem
    check_size(Layout(LENGTHS, (2, 3), torch.float32), tmp_path, max_gb=1e-6)


def test_a_store_larger_than_the_free_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(LENGTHS, (2, 3), torch.float32)
    needed = 13 * 2 * 3 * 4
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, needed))
    check_size(layout, tmp_path, max_gb=20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, needed - 1))
    with pytest.raises(ConfigError, match=r"3\.11e-07 GB are free in cache_dir="):
        check_size(layout, tmp_path / "new", max_gb=20)


def test_a_full_disk_is_met_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    writer = make_writer(tmp_path)
    with pytest.raises(HostError, match="No space left"):
        writer.reserve()
    writer.discard()
    assert find_store(STORE, tmp_path) is None and not list(tmp_path.iterdir())


def test_an_unfinished_store_is_absent(tmp_path: Path) -> None:
    writer = make_writer(tmp_path)
    writer.reserve()
    write_rows(writer, make_states(torch.float32))
    assert find_store(STORE, tmp_path) is None
    with pytest.raises(CacheError, match="no whole store"):
        open_store(writer.path, key=STORE.key)


def test_a_store_that_gets_no_name_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make_writer(tmp_path)
    writer.reserve()
    write_rows(writer, make_states(torch.float32))

    def fail(source: Path, place: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(HostError, match=f"cannot write .*: {os.strerror(errno.EIO)}"):
        writer.publish()
    assert find_store(STORE, tmp_path) is None
    writer.discard()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["train.states", "test.offsets.npy", "manifest.json"])
def test_a_cut_off_store_is_absent_and_mended(tmp_path: Path, file: str, capsys: pytest.CaptureFixture) -> None:
    damaged = write_store(tmp_path).path / file
    os.truncate(damaged, damaged.stat().st_size - 4)
    assert find_store(STORE, tmp_path) is None
    assert "computing the source states again" in capsys.readouterr().err
    write_store(tmp_path)
    found = find_store(STORE, tmp_path)
    assert found is not None
    assert_holds(found, make_states(torch.float32))


def test_builders_at_the_same_time_end_with_one_good_store(tmp_path: Path) -> None:
    first, second = make_writer(tmp_path), make_writer(tmp_path, tag="00000002")
    first.reserve()
    second.reserve()
    mine, others = make_states(torch.float32), make_states(torch.float32, seed=1)
    write_rows(first, mine)
    write_rows(second, others)
    assert_holds(first.publish(), mine)
    late = second.publish()
    assert_holds(late, mine)
    second.discard()
    assert list(tmp_path.iterdir()) == [late.path]
    names = {file.name for file in late.path.iterdir()}
    assert names == {f"{split}.{kind}" for split in LENGTHS for kind in ("states", "offsets.npy")} | {"manifest.json"}
