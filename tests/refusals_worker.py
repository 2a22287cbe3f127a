"""Commands that are refused late, by the trainer itself: python -m tests.refusals_worker CONFIG OVERRIDES...

Each argument is a JSON list of overrides. For each a line of JSON: what was said, and whether anything is another byte.
"""

import json
import sys
from pathlib import Path

from flare_ds.exceptions import FlareError
from flare_ds.locks import release_all
from flare_ds.settings import load_config
from flare_ds.training.run import open_run
from tests.training.alone import Trainer


def contents(directory: Path) -> dict[str, bytes] | None:
    """None: there is no such directory."""
    if not directory.exists():
        return None
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def refused(path: str, overrides: list[str]) -> dict[str, object]:
    config = load_config(path, overrides)
    before = contents(Path(config.run_dir))
    try:
        Trainer(config, open_run(config, train=True))
        said = "nothing"
    except FlareError as error:
        said = f"{type(error).__name__}: {error}"
    release_all()
    return {"said": said, "same": contents(Path(config.run_dir)) == before, "there": before is not None}


if __name__ == "__main__":
    for overrides in sys.argv[2:]:
        print(json.dumps(refused(sys.argv[1], json.loads(overrides))), flush=True)
