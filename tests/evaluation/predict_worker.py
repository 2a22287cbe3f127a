"""One rank that calls the command line again and again in one process: `predict_worker COMMANDS`.

COMMANDS is a JSON list of lists of arguments; what the one that ends in "> FILE" prints goes to FILE, and what one
with "< FILE" reads comes from there.
"""

import json
import sys
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

from flare_ds.cli import main
from flare_ds.runtime.engine import make_room


def run(arguments: list[str]) -> None:
    with ExitStack() as stack:
        if ">" in arguments:
            *arguments, _, path = arguments
            stack.enter_context(redirect_stdout(stack.enter_context(Path(path).open("w", encoding="utf-8"))))
        if "<" in arguments:
            *arguments, _, path = arguments
            sys.stdin = stack.enter_context(Path(path).open(encoding="utf-8"))
        assert main(arguments) == 0, arguments
    make_room()


if __name__ == "__main__":
    for command in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        run(command)
