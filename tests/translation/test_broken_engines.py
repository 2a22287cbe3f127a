"""Engines that are broken write nothing: not from their start, in one process or in several, nor from the middle on."""

import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from flare_ds.config import TranslateConfig
from flare_ds.exceptions import HostError
from flare_ds.tasks.base import Row
from flare_ds.translation.engines import ENGINES, Direction, Engine, Said
from flare_ds.translation.run import translate_jobs
from flare_ds.translation.store import read_manifest, read_translation
from tests.translation.rows import Program, job, settings

ROWS = [Row(str(number), {"text": f"{'so ' * (9 - number)}on"}) for number in range(9)]


def kept(directory: Path) -> list[list]:
    """What the files of finished batches say of their sentences."""
    files = (directory / "translations").glob(".*.partial/said/*.json")
    return [[said for _, said in json.loads(path.read_text())] for path in files]


def failed_rows(directory: Path) -> int:
    (path,) = translate_jobs([job(ROWS)], settings(directory))
    return read_manifest(path).report.failed


@pytest.mark.parametrize(("first", "size"), [("sys.exit(1)", 2), ("print(); sys.exit(0)", 1)], ids=["raises", "mute"])
def test_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, size: int) -> None:
    Program(tmp_path / "program", monkeypatch, first=first)
    with pytest.raises(HostError, match="translates nothing in worker 0") as raised:
        translate_jobs([job(ROWS)], settings(tmp_path, batch_size=size))
    assert "goes on from here" in raised.value.fix and kept(tmp_path) == []
    Program(tmp_path / "program", monkeypatch)
    assert failed_rows(tmp_path) == 0


def test_in_one_of_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fail faster than the other one works, and so have most of the batches."""
    mine = f"""
import os
try:
    os.mkdir({str(tmp_path / "broken")!r}); os.mkdir({str(tmp_path / "broken")!r} + str(os.getppid()))
except FileExistsError:
    pass
if os.path.exists({str(tmp_path / "broken")!r} + str(os.getppid())):
    sys.exit(1)
"""
    Program(tmp_path / "program", monkeypatch, seconds=0.1, first=mine)
    with pytest.raises(HostError, match=r"translates nothing in worker [01]: CalledProcessError"):
        translate_jobs([job(ROWS)], settings(tmp_path), workers=2)
    assert all(None not in translations for translations in kept(tmp_path))
    Program(tmp_path / "program", monkeypatch)
    assert failed_rows(tmp_path) == 0


def breaks_after(batches: int, directory: Path) -> str:
    """What a program in a directory does that works so many times."""
    log = str(directory / "batches.log")
    return f"import os\nif os.path.exists({log!r}) and open({log!r}).read().count('|\\n') >= {batches}: sys.exit(1)"


def test_within_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five sentences the second cannot be translated, so each is tried alone; behind the third the engine breaks."""
    program, given = tmp_path / "program", settings(tmp_path, batch_size=5)
    texts = ("We saw all", "A bomb on", "We met", "Yes", "No")
    rows = [Row(text, {"text": text}) for text in texts]
    Program(program, monkeypatch, fails="bomb", first=breaks_after(2, program))
    with pytest.raises(HostError, match="translates nothing"):
        translate_jobs([job(rows)], given)
    assert kept(tmp_path) == []
    Program(program, monkeypatch, fails="bomb")
    (path,) = translate_jobs([job(rows)], given)
    assert read_manifest(path).report.failed == 1


def test_between_two_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    Program(program, monkeypatch, first=breaks_after(3, program))
    with pytest.raises(HostError, match="translates nothing"):
        translate_jobs([job(ROWS)], settings(tmp_path))
    assert len(kept(tmp_path)) == 3 and all(None not in translations for translations in kept(tmp_path))
    Program(program, monkeypatch)
    assert failed_rows(tmp_path) == 0


FIRST = "A bomb is the very first"


@pytest.mark.parametrize(("bombs", "size"), [([FIRST], 1), ([FIRST, "Bomb", "A bomb on"], 1), ([FIRST, "Bomb"], 4)])
def test_sentences_that_cannot_be_translated_are_no_broken_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bombs: list[str], size: int
) -> None:
    """Whichever batch a process gets first, and wherever in it they stand."""
    rows = [Row(text, {"text": text}) for text in (*bombs, "We met there", "We left")]
    Program(tmp_path / "program", monkeypatch, fails="omb")
    (path,) = translate_jobs([job(rows)], settings(tmp_path, batch_size=size))
    assert read_manifest(path).report.failed == len(bombs)


class Full(Engine):
    """Of long sentences it takes one at a time, of those with a number none."""

    error: Exception = RuntimeError()

    def __init__(self, translate: TranslateConfig, direction: Direction, *, worker: int) -> None:
        if "start" in str(self.error):
            raise self.error

    @classmethod
    def identity(cls, translate: TranslateConfig, direction: Direction) -> dict[str, object]:
        return {}

    def translate(self, sentences: Sequence[str]) -> list[Said | None]:
        if len(sentences) > 1 or any(map(str.isdigit, sentences[0])):
            raise self.error
        return [Said(sentence.upper()) for sentence in sentences]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA failed with error out of memory"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=repr,
)
def test_no_memory_is_no_fault_of_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setitem(ENGINES._things, "full", Full)
    monkeypatch.setattr(Full, "error", error)
    given = settings(tmp_path, batch_size=4).model_copy(update={"engine": "full"})
    texts = ["We met", "We left them", "And then", "So it went on 7", "Fine"]
    with pytest.raises(HostError, match="no memory for a single sentence in worker 0"):
        translate_jobs([job([Row(text, {"text": text}) for text in texts])], given)
    assert kept(tmp_path) == []
    (path,) = translate_jobs([job([Row(text, {"text": text}) for text in texts if "7" not in text])], given)
    assert read_manifest(path).report.failed == 0


class Heavy(Engine):
    """Takes one sentence at a time; what it computed with more, its error holds. Two of it are too much."""

    alive: ClassVar[list["weakref.ref[object]"]] = []

    def __init__(self, translate: TranslateConfig, direction: Direction, *, worker: int) -> None:
        assert not [one for one in self.alive if one() is not None], "the other model is still there"
        self.alive.append(weakref.ref(self))

    @classmethod
    def identity(cls, translate: TranslateConfig, direction: Direction) -> dict[str, object]:
        return {}

    def translate(self, sentences: Sequence[str]) -> list[Said | None]:
        assert not [one for one in self.alive if one() not in (None, self)], "its tensors are still there"
        if len(sentences) > 1:
            states = torch.zeros(1)
            self.alive.append(weakref.ref(states))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [Said(sentences[0].upper())]


def test_what_failed_leaves_its_memory_to_what_is_tried_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The batch to its sentences, and the model of one direction to that of the other."""
    monkeypatch.setitem(ENGINES._things, "heavy", Heavy)
    monkeypatch.setattr(Heavy, "alive", [])
    given = settings(tmp_path, batch_size=4).model_copy(update={"engine": "heavy"})
    jobs = [job(ROWS), job(ROWS, split="test", to_language="por_Latn")]
    assert [read_manifest(path).report.failed for path in translate_jobs(jobs, given)] == [0, 0]
    assert "a smaller translate.batch_size is faster" in capsys.readouterr().err


class Flawed(Full):
    """Its sentences are what they say."""

    def translate(self, sentences: Sequence[str]) -> list[Said | None]:
        return [Said(one.upper(), cut_off="cut" in one, unknown="unknown" in one) for one in sentences]


def test_what_an_engine_tells_of_a_sentence_marks_the_rows_that_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENGINES._things, "flawed", Flawed)
    texts = ["We met. It was cut", "It is unknown. We left", "All cut. All unknown", "Fine"]
    rows = [Row(text, {"text": text}) for text in texts]
    (path,) = translate_jobs([job(rows)], settings(tmp_path).model_copy(update={"engine": "flawed"}))
    marks = [row.marks for row in read_translation(path, rows) if row is not None]
    assert marks == [("cut_off",), ("unknown",), ("cut_off", "unknown"), ()]


def test_an_engine_that_does_not_start_is_told_in_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES._things, "full", Full)
    monkeypatch.setattr(Full, "error", ValueError("cannot start: wrong compute type"))
    with pytest.raises(HostError, match="does not start in worker 0: ValueError: cannot start: wrong compute type"):
        translate_jobs([job(ROWS)], settings(tmp_path).model_copy(update={"engine": "full"}))
