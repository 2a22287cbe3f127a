"""`flare-ds prepare`, killed at any moment or run several times at once, ends with the cache of an undisturbed run.

Processes are real. They are forked from a server that has imported the package, so that they spend their lives
preparing.
"""

import random
import shutil
import signal
import sys
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import yaml

from flare_ds import published
from flare_ds.cli import main
from flare_ds.data.cache import open_cache, verify
from flare_ds.exceptions import CacheError
from tests.data.cache.texts import byte_tokenizer, make_settings, some_tables, write_tables

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload([__name__, "flare_ds.data.cache", "flare_ds.models.loading", "flare_ds.tasks.load"])
ROWS = 3000
KILLS, ALL_KILLS = 3, 20


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "moment" in metafunc.fixturenames:
        draw = random.Random(4)
        kills = ALL_KILLS if metafunc.config.getoption("--full") else KILLS
        metafunc.parametrize(
            "moment", [(number + draw.random()) / kills for number in range(kills)], ids="{:.2f}".format
        )


def write_config(root: Path, place: Path) -> Path:
    """A config whose caches lie below `place`."""
    place.mkdir()
    path = place / "run.yaml"
    path.write_text(yaml.safe_dump(make_settings(root) | {"cache_dir": str(place / "caches")}), encoding="utf-8")
    return path


def prepare(config: Path) -> None:
    sys.exit(main(["prepare", str(config)]))


def prepare_together(config: Path, all_built: Barrier) -> None:
    """Build as always, but finish only when every builder has a directory of its own."""
    finish_build = published.publish

    def wait_and_finish(partial: Path, directory: Path, check: published.Check) -> None:
        all_built.wait(240)
        finish_build(partial, directory, check)

    published.publish = wait_and_finish
    prepare(config)


def start(config: Path) -> BaseProcess:
    process = SERVER.Process(target=prepare, args=(config,))
    process.start()
    return process


def finish(*processes: BaseProcess) -> None:
    for process in processes:
        process.join(300)
        assert process.exitcode == 0


def directory_bytes(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    write_tables(root, some_tables(ROWS))
    byte_tokenizer().save_pretrained(root / "model")
    (root / "model/config.json").write_text('{"model_type": "llama"}')
    return root


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> tuple[Path, dict[str, bytes], float]:
    """The cache of a run that nothing disturbs, its files, and for how long it was being written."""
    config = write_config(root, root / "undisturbed")
    process = start(config)
    await_build(config, process)
    began = time.monotonic()
    finish(process)
    seconds = time.monotonic() - began
    (cache,) = caches_of(config)
    return cache, directory_bytes(cache), seconds


def caches_of(config: Path) -> list[Path]:
    """Caches, whole and begun; which settings asked for them is noted beside them."""
    return [path for path in config.parent.glob("caches/*") if path.name != "requests"]


def await_build(config: Path, process: BaseProcess) -> None:
    """Wait until the process has begun to write."""
    while process.is_alive() and not caches_of(config):
        time.sleep(0.001)


def test_the_next_run_ends_what_a_killed_one_began(root: Path, undisturbed: tuple, moment: float) -> None:
    cache, files, seconds = undisturbed
    config = write_config(root, root / f"killed-{moment}")
    while True:
        process = start(config)
        await_build(config, process)
        time.sleep(moment * seconds)
        process.kill()
        process.join()
        left = caches_of(config)
        if [path.name for path in left] != [cache.name]:
            break
        seconds /= 2  # it was faster than the one before
        shutil.rmtree(left[0])
    assert process.exitcode == -signal.SIGKILL
    assert left, "it had begun"
    for path in left:
        with pytest.raises(CacheError):
            open_cache(path)
    finish(start(config))
    again = config.parent / "caches" / cache.name
    verify(again)
    assert directory_bytes(again) == files


@pytest.mark.parametrize("builders", [2, 4])
def test_several_builders_at_once_end_with_one_good_cache(root: Path, undisturbed: tuple, builders: int) -> None:
    cache, files, _ = undisturbed
    config = write_config(root, root / f"builders-{builders}")
    all_built = SERVER.Barrier(builders)
    processes = [SERVER.Process(target=prepare_together, args=(config, all_built)) for _ in range(builders)]
    for process in processes:
        process.start()
    finish(*processes)
    assert [path.name for path in caches_of(config)] == [cache.name]
    verify(config.parent / "caches" / cache.name)
    assert directory_bytes(config.parent / "caches" / cache.name) == files
