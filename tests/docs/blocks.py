"""The blocks of code that README.md and docs/ print, and how each is marked.

A block is fenced, and names its language: `bash` and `python` (run), `yaml` and `json` (validated), `csv`, and `text`,
which is output and nobody types. A line before it that ends in "`name`:" says that the block is the file of that name.
A line `<!-- not run: why -->` before it says that it cannot run in a test.
"""

import re
from pathlib import Path
from typing import NamedTuple

from tests.toy import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`([\w./-]+)`:\s*\Z")
_SKIPPED = re.compile(r"<!-- not run: (.+) -->\s*\Z")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page: the file it stands in.
        line: of its fence, counted from 1.
        language: behind the fence.
        text: between the fences.
        file: the name of the file that it is, if it is one.
        skipped: why it cannot run in a test, if it cannot.
    """

    page: Path
    line: int
    language: str
    text: str
    file: str | None
    skipped: str | None

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block, continued lines joined, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in its order."""
    text = page.read_text(encoding="utf-8")
    return [_block(page, text[: found.start()], found) for found in _FENCE.finditer(text)]


def _block(page: Path, before: str, found: re.Match[str]) -> Block:
    file, skipped = _FILE.search(before), _SKIPPED.search(before)
    line = before.count("\n") + 1
    return Block(page, line, found[2], found[3], file and file[1], skipped and skipped[1])
