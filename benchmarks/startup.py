"""How long a command takes to its first step or its first scored batch, and with what; prints JSON.

    python benchmarks/startup.py [--model DIR] [--ranks 1 2] [--repeat N]
    PYTHONPATH=OTHER_CLONE python benchmarks/startup.py ...                      the same of another version

`seconds` are of the command as it is typed (with --ranks where there are several), from its start to the first line of
the run's log, or to its end where it only scores a few rows. `parts` are of one process (rank 0 of ranks that were
started directly, all at once), in processor seconds, each without the parts inside it; `rest` is what no part names.
The model is a small random Llama, unless one is given; its token cache is there already. Compare versions in turns, by
their ratio, on a machine that does nothing else.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PARTS = {
    "settings": "flare_ds.settings:load_config",
    "ranks meet": "flare_ds.runtime.joining:join_process_group",
    "cache": "flare_ds.data.cache.reader:open_cache",
    "shape": "flare_ds.models.loading:load_shape",
    "tokenizer": "flare_ds.models.loading:load_tokenizer",
    "fingerprint": "flare_ds.model_files.fingerprint:model_fingerprint",
    "checks": "flare_ds.training.readable:check_readable",
    "opening": "flare_ds.training.run:open_run",
    "base": "flare_ds.models.loading:load_base",
    "adapter": "flare_ds.adapters.inject:inject_adapter",
    "engine": "deepspeed:initialize",
    "scoring": "flare_ds.evaluation.split:score_split",
}
"""What is measured on its own, and the function that does it."""


class Clock:
    """Processor seconds by part; what runs inside another part is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.running: list[str] = ["rest"]
        self.since = 0.0  # of the process: what the interpreter itself takes is the rest's

    def turn(self) -> None:
        """Count what has passed for the part that runs."""
        now = time.process_time()
        part = self.running[-1]
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.since
        self.since = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted as this part."""

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            self.turn()
            self.running.append(part)
            try:
                return function(*arguments, **named)
            finally:
                self.turn()
                self.running.pop()

        return call

    def watch(self) -> None:
        """Count every call of the functions that are parts, under whatever name a module knows them."""
        for part, place in PARTS.items():
            module, _, name = place.partition(":")
            function = getattr(sys.modules[module], name)
            known = [found for key, found in sys.modules.items() if key.startswith(("flare_ds", module))]
            for found in known:
                for attribute in [key for key, value in vars(found).items() if value is function]:
                    setattr(found, attribute, self.timed(part, function))


def inside(words: list[str], out: Path) -> None:
    """Run a command in this process, as a rank, up to its first step or its end."""
    clock = Clock()

    def imports() -> None:
        from flare_ds.cli import main  # noqa: F401
        from flare_ds.evaluation import evaluate  # noqa: F401
        from flare_ds.runtime import sharded  # noqa: F401
        from flare_ds.training import run, together  # noqa: F401

    clock.timed("imports", imports)()
    clock.watch()
    from flare_ds.cli import main
    from flare_ds.training.records import Records

    def tell(*_: Any, **__: Any) -> None:
        clock.turn()
        if os.environ["RANK"] == "0":
            out.write_text(json.dumps(clock.seconds))
        time.sleep(1)  # the other ranks are still in their step
        os._exit(0)

    Records.step = tell  # type: ignore[method-assign]
    main(words)
    tell()


def typed(words: list[str], log: Path) -> float:
    """Seconds from the start of a command to the first line of its log; to its end if it writes none."""
    log.unlink(missing_ok=True)
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "flare_ds", *words], stdout=sys.stderr)
    while process.poll() is None and '"loss"' not in (log.read_text() if log.exists() else ""):
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    process.terminate()
    process.wait()
    return seconds


def parts(words: list[str], ranks: int) -> dict[str, float]:
    """Processor seconds of rank 0, by part."""
    from workload import run_ranks

    return run_ranks(__file__, ["--inside", *words], ranks)


def measure(directory: Path, model: Path | None, ranks: int, repeat: int) -> dict[str, Any]:
    """Both verbs on so many ranks."""
    sys.path.insert(0, str(REPOSITORY))
    from tests.toy import toy_settings, write_config

    found: dict[str, Any] = {}
    settings = toy_settings(directory, name=f"run{ranks}", steps=2, validate_every=2)
    settings["model"]["base"] = str(model or settings["model"]["base"])
    settings["task"] |= {"validation_rows": 8, "test_rows": 8}
    config = write_config(settings)
    run, several = Path(settings["run_dir"]), [] if ranks == 1 else ["--ranks", str(ranks)]
    command = [sys.executable, "-m", "flare_ds"]
    subprocess.run([*command, "prepare", str(config)], check=True, stdout=sys.stderr)
    subprocess.run([*command, "train", str(config)], check=True, stdout=sys.stderr)
    for verb, log in (("train", run / "train_log.jsonl"), ("evaluate", run / "nothing")):
        seconds = []
        for _ in range(repeat):
            if verb == "train":
                subprocess.run(["rm", "-rf", str(run / "state"), str(run / "adapter"), str(run / "training.json")])
            seconds.append(typed([verb, str(config), *several], log))
        found[f"{verb}, {ranks} ranks"] = {
            "seconds": statistics.median(seconds),
            "parts": parts([verb, str(config)], ranks),
        }
        if verb == "train":
            subprocess.run([*command, "train", str(config)], check=True, stdout=sys.stderr)
    return found


def main() -> None:
    """Measure what the arguments say."""
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2:-1], Path(sys.argv[-1]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory of a base")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    os.environ["DS_ACCELERATOR"] = "cpu"
    with tempfile.TemporaryDirectory() as directory:
        found: dict[str, Any] = {}
        for ranks in options.ranks:
            found |= measure(Path(directory), options.model, ranks, options.repeat)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
