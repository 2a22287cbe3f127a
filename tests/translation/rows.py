"""Rows, jobs and a stand-in for the program apertium, for the tests of translation."""

import os
import random
import sys
from pathlib import Path

import pytest

from flare_ds.config import TranslateConfig
from flare_ds.tasks.base import Answer, Row, Split
from flare_ds.translation.engines import Direction
from flare_ds.translation.job import TranslationJob

PROGRAM = """\
#!{python} -IS
import sys, time
text = sys.stdin.read()
{first}
time.sleep({seconds})
if {fails!r} and {fails!r} in text:
    sys.exit(3)
with open({log!r}, "a") as log:
    log.write(text.replace("\\n", "|") + "\\n")
lost = {empty!r}
words = lambda line: "" if lost and lost in line else " ".join(word.swapcase() for word in line.split())
sys.stdout.write("\\n".join(words(line) for line in text.split("\\n")))
"""
"""Translates by swapping the case of letters; remembers each batch it has finished."""


class Program:
    """The stand-in, first on the PATH.

    Args:
        directory: to put it in.
        monkeypatch: undoes the changes of the environment.
        seconds: a batch takes.
        fails: a text on which it exits with an error.
        empty: a text which it translates to nothing.
        first: what it does before all else, as Python that knows `text`.
    """

    def __init__(
        self,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        seconds: float = 0.0,
        fails: str = "",
        empty: str = "",
        first: str = "",
    ) -> None:
        self.log = directory / "batches.log"
        for pair in ("eng-spa", "eng-cat"):
            data = directory / f"apertium-{pair}"
            data.mkdir(parents=True, exist_ok=True)
            (data / "rules").write_text("swap the case")
        program = directory / "apertium"
        said = {"seconds": seconds, "fails": fails, "empty": empty, "first": first, "log": str(self.log)}
        program.write_text(PROGRAM.format(python=sys.executable, **said))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("APERTIUM_DATADIR", str(directory))

    def finished(self) -> list[str]:
        """The batches that were translated, in order."""
        return self.log.read_text().splitlines() if self.log.exists() else []


def settings(directory: Path, **values: object) -> TranslateConfig:
    """The stand-in as the engine, two sentences a batch."""
    given = {"engine": "apertium", "directory": str(directory / "translations"), "batch_size": 2, **values}
    return TranslateConfig.model_validate(given)


def job(rows: list[Row], *, to_language: str = "spa_Latn", split: Split = "train") -> TranslationJob:
    """A job from English; the answers stand in the field `text`."""
    return TranslationJob(split, Direction("eng_Latn", to_language), rows, "text")


def random_rows(number: int, *, seed: int = 0) -> list[Row]:
    """Rows of two fields, with the same answer twice or none."""
    draw = random.Random(seed)
    rows = []
    for place in range(number):
        words = [f"{draw.choice('abcdefgh')}{draw.randint(0, 999)}" for _ in range(draw.randint(5, 30))]
        answer = words[draw.randrange(len(words))]
        text = ". ".join(" ".join(words[start : start + 6]).capitalize() for start in range(0, len(words), 6))
        start = text.lower().index(answer)
        found = Answer(text[start : start + len(answer)], start)
        answers = (found, found) if place % 3 else ()
        rows.append(Row(f"id{place}", {"question": f"Which {place}?", "text": text}, place % 2, answers))
    return rows
