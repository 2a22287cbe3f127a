"""One process that does what several commands do, one after another: `commands_worker DIRECTORY COMMANDS.json`.

Each command is the arguments of `flare-ds`; they run in that directory.
"""

import json
import os
import sys
from pathlib import Path

from flare_ds.cli import _parse
from flare_ds.runtime.engine import make_room


def main(directory: str, commands: str) -> None:
    os.chdir(directory)
    for arguments in json.loads(Path(commands).read_text()):
        options = _parse(arguments)
        assert not options.run(options), arguments
        make_room()


if __name__ == "__main__":
    main(*sys.argv[1:])
