"""Typing a command of a page: our verbs run in this process, with what makes them small; everything else in bash."""

import gc
import glob
import os
import shlex
import subprocess
import sys
from pathlib import Path

from flare_ds.cli import main
from flare_ds.runtime.engine import make_room
from tests.distributed import inherited

_SIZES = {
    "stage1": ["train.steps=40", "train.epochs=null", "train.validate_every=20", "train.learning_rate=0.01"],
    "train": ["train.steps=2", "train.epochs=null", "train.validate_every=2"],
}
"""Settings behind a verb: less training, but for stage 1, which would learn nothing in two steps."""
_HOW_MANY = ("--ranks", "--workers")


def typed(command: str) -> None:
    """Run one command of a page, to its good end."""
    words = shlex.split(command, comments=True)
    if words[:1] != ["flare-ds"] or ">" in words:
        own = {"HOME": str(Path.cwd()), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        subprocess.run(["bash", "-c", command], check=True, timeout=100, env={**inherited(), **own})
        return
    arguments = [found for word in words[1:] for found in sorted(glob.glob(word)) or [word]]
    for option in _HOW_MANY:  # sizes too: the verbs give the same with any
        if option in arguments:
            del arguments[arguments.index(option) : arguments.index(option) + 2]
    given = {word.partition("=")[0] for word in arguments}
    sizes = [size for size in _SIZES.get(arguments[0], []) if size.partition("=")[0] not in given]
    try:
        assert main([*arguments, *sizes]) == 0, command
    finally:
        make_room()
        gc.collect()
