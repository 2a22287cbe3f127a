"""Translations that are killed: the next run goes on where it was, and ends with the same bytes."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flare_ds.translation.run import translate_jobs
from tests.distributed import REPOSITORY
from tests.translation.rows import Program, job, random_rows, settings

ROWS = 8
SECONDS = 0.02


def start(directory: Path, workers: int) -> subprocess.Popen:
    arguments = ["-m", "tests.translation.translate_worker", str(directory), str(workers), str(ROWS)]
    return subprocess.Popen([sys.executable, *arguments], cwd=REPOSITORY, stderr=subprocess.DEVNULL)


def content(directory: Path) -> dict[str, bytes]:
    """Every file below the translations, by its path."""
    top = directory / "translations"
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def batch_files(directory: Path) -> dict[str, int]:
    found = (directory / "translations").glob(".*.partial/said/[0-9a-f]*.json")
    return {path.name: path.stat().st_mtime_ns for path in found}


def test_a_killed_translation_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    program = Program(tmp_path / "program", monkeypatch, seconds=SECONDS)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    translate_jobs([job(random_rows(ROWS))], settings(whole))
    batches = len(program.finished())
    moments = 20 if pytestconfig.getoption("full") else 3
    draw = random.Random(4)
    program.log.unlink()
    finished: dict[str, int] = {}
    for moment in range(moments):
        # Each kill comes some batches after the last one, within a batch, in one process or in one of two.
        until = len(program.finished()) + draw.randint(0, batches // moments)
        kill(start(killed, workers=1 + moment % 2), program, until, wait=draw.random() * SECONDS)
        before, finished = finished, batch_files(killed)
        assert before.items() <= finished.items(), "a finished batch was translated again"
    assert 0 < len(finished) < batches, "the kills came while batches were finished and others were not"
    assert start(killed, workers=2).wait() == 0
    assert len(program.finished()) <= batches + 2 * moments, "only batches that were under way are repeated"
    assert content(killed) == content(whole)


def kill(process: subprocess.Popen, program: Program, until: int, *, wait: float) -> None:
    """Kill -9 a translation when so many batches are done, and a moment has passed."""
    while len(program.finished()) < until:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    time.sleep(wait)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not psutil.wait_procs(children, timeout=20)[1], "workers go when their parent is gone"
