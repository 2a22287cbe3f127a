"""Runs every Python block of a page, one after another, as a reader types them: `page_worker PAGE DIRECTORY`."""

import os
import re
import sys
from pathlib import Path


def main(page: Path, directory: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    os.chdir(directory)
    typed: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page.name}, block {number}", "exec"), typed)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
