"""Tokenizing in several processes: the same bytes, few chunks in flight, and no process outlives its build."""

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest

from flare_ds.data.cache import prepare_cache, workers
from flare_ds.data.cache.workers import enough_workers
from flare_ds.exceptions import HostError
from tests.data.cache.moods import DEADLY, directory_bytes, moods_config, word_tokenizer, write_data


def test_worker_processes_write_the_same_bytes(tmp_path: Path) -> None:
    write_data(tmp_path / "data", rows=1300)
    config = moods_config(tmp_path, max_prompt_tokens=10)
    one = directory_bytes(prepare_cache(config, word_tokenizer()))
    elsewhere = config.model_copy(update={"cache_dir": str(tmp_path / "other")})
    assert directory_bytes(prepare_cache(elsewhere, word_tokenizer(), workers=2)) == one


def test_a_killed_worker_is_explained(root: Path) -> None:
    with pytest.raises(HostError, match="one of the 2 processes that tokenize was killed"):
        prepare_cache(moods_config(root, DEADLY.name), word_tokenizer(), workers=2)
    assert list((root / "caches").iterdir()) == []


ENDLESS_BUILD = """
import itertools
from pathlib import Path
from flare_ds.data.cache.rows import RowEncoder
from flare_ds.data.cache.workers import encode_in
from flare_ds.data.parallel import ParallelRow, Side
from tests.data.cache.moods import MOODS, moods_config, word_tokenizer

side = Side({"text": "red"})
with encode_in(2, RowEncoder(MOODS, word_tokenizer(), moods_config(Path('unused'), max_prompt_tokens=50))) as encode:
    for _ in encode("test", itertools.repeat([ParallelRow("1", 0, (side,), side)])):
        print("encoded", flush=True)
"""


def test_workers_end_when_their_build_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", ENDLESS_BUILD], stdout=subprocess.PIPE, text=True) as build:
        assert build.stdout is not None and build.stdout.readline() == "encoded\n"
        started = psutil.Process(build.pid).children()
        build.kill()
    assert len(started) >= 2
    deadline = time.monotonic() + 30
    while any(map(is_alive, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, started))


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Pool:
    """Does at once what it is asked for."""

    def submit(self, _: object, split: str, chunk: object) -> Future:
        future: Future = Future()
        future.set_result((split, chunk))
        return future


def test_chunks_are_read_as_they_are_needed_and_come_in_order() -> None:
    read = 0

    def chunks() -> Iterator[int]:
        nonlocal read
        while read < 100:
            read += 1
            yield read

    for done, (chunk, encoded) in enumerate(workers._in_order(Pool(), 6, "test", chunks()), 1):
        assert (chunk, encoded) == (done, ("test", done))
        assert read <= done + 6
    assert done == 100


def test_processes_are_started_where_they_have_enough_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "available_cores", lambda: 4)
    assert [enough_workers(rows) for rows in (0, 39_999, 40_000, 10**9)] == [1, 1, 2, 4]
