"""apertium: rule-based translation by the external program of that name; fast, rough, for CPUs."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from flare_ds.checksums import directory_sha256
from flare_ds.config import TranslateConfig
from flare_ds.exceptions import ConfigError, HostError
from flare_ds.texts import one_line
from flare_ds.translation.engines.base import ENGINES, Direction, Engine, Said

_PAIRS = {
    "eng-spa": ("eng_Latn", "spa_Latn"),
    "eng-cat": ("eng_Latn", "cat_Latn"),
    "en-gl": ("eng_Latn", "glg_Latn"),
    "hbs-eng": ("hrv_Latn", "eng_Latn"),
}
"""Debian's language pairs, each of which translates both ways."""
_BREAK = "\n\n"
"""Between sentences: the rules reorder words across a single line break."""
_LONGEST_S = 600


class Apertium(Engine):
    """Runs `apertium` once for each batch."""

    def __init__(self, translate: TranslateConfig, direction: Direction, *, worker: int) -> None:
        self._command = ["apertium", "-u", _mode(direction)[0]]

    @classmethod
    def identity(cls, translate: TranslateConfig, direction: Direction) -> dict[str, object]:
        """The language data it is installed with."""
        mode, package = _mode(direction)
        data = Path(os.environ.get("APERTIUM_DATADIR", "/usr/share/apertium")) / package
        if shutil.which("apertium") is None or not data.is_dir():
            problem = f"translate.engine='apertium' needs the program apertium with {package} for {direction}"
            raise HostError(problem, fix=f"apt install apertium {package}")
        return {"mode": mode, "data_sha256": directory_sha256(data)}

    def translate(self, sentences: Sequence[str]) -> list[Said | None]:
        """Translate all in one run of the program."""
        text = _BREAK.join(map(one_line, sentences))
        done = subprocess.run(
            self._command, input=text + _BREAK, capture_output=True, encoding="utf-8", timeout=_LONGEST_S, check=True
        )
        return [Said(translation.strip()) for translation in done.stdout.strip("\n").split(_BREAK)]


def _mode(direction: Direction) -> tuple[str, str]:
    """The name of a translation mode, and the package it is in."""
    for pair, languages in _PAIRS.items():
        first, last = pair.split("-")
        if direction == languages:
            return pair, f"apertium-{pair}"
        if direction == languages[::-1]:
            return f"{last}-{first}", f"apertium-{pair}"
    known = ", ".join(f"{first}<->{last}" for first, last in _PAIRS.values())
    problem = f"translate.engine='apertium' has no {direction}, only {known}"
    raise ConfigError(problem, fix="set translate.engine=nllb, or choose another task.target_language")


ENGINES.add("apertium", Apertium)
