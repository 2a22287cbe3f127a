"""A sweep with a stand-in for the commands it starts.

The stand-in is a script that does what stage1, train, evaluate and prepare leave behind, in no time. It is started,
seen and ended as the real commands are: real processes, signals and files.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from flare_ds.scoring.predictions import write_predictions
from tests.distributed import inherited

STAND_IN = """#!{python}
import hashlib, itertools, json, os, pathlib, shutil, subprocess, sys, time

verb, *words = sys.argv[sys.argv.index("flare_ds") + 1 :]
runs = [pathlib.Path(word).absolute() for word in itertools.takewhile(os.path.isdir, words)]
rest = words[len(runs) :]
here = pathlib.Path(__file__).parent
with (here / "calls.txt").open("a") as file:
    print(verb, *(run.relative_to(here / "out") for run in runs), *rest, file=file)

def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()

def do(verb, run):
    call = f"{{verb}} {{run.relative_to(here / 'out')}}"
    weights = run / "adapter/adapter_model.safetensors"
    print("hello from", call, flush=True)
    if call == os.environ.get("HANG"):
        child = subprocess.Popen(["sleep", "600"])
        (here / "hanging.txt").write_text(f"{{os.getpid()}} {{child.pid}}")
        time.sleep(600)
    if call in os.environ.get("MEET", "").split(","):  # each waits until all of them run
        (here / call.replace("/", "-")).touch()
        deadline = time.monotonic() + 20
        while not all((here / other.replace("/", "-")).exists() for other in os.environ["MEET"].split(",")):
            assert time.monotonic() < deadline, "nobody came"
            time.sleep(0.02)
        print("threads:", os.environ["OMP_NUM_THREADS"])
    if call == os.environ.get("FAIL_ONCE") and not (here / "failed_once").exists():
        (here / "failed_once").touch()
        sys.exit("no luck this time")
    if call == os.environ.get("FAIL"):
        sys.exit("flare-ds: no luck with " + call)
    if call == os.environ.get("NOTHING"):
        sys.exit(0)
    if verb != "prepare":
        (run / "cache.json").write_text("{{}}")
        tuned, begun_on = here / "out/base/config.json", run / "base.json"
        if tuned.exists() and run.name != "stage1" and not begun_on.exists():
            begun_on.write_text(json.dumps({{"fingerprint": sha256(tuned)}}))
    if verb in ("train", "stage1") and not (run / "training.json").exists():
        weights.parent.mkdir(exist_ok=True)
        weights.write_bytes(os.urandom(8))
        costs = {{"trained_parameters": 10, "median_step_seconds": 0.5, "tokens_per_second": 100.0}}
        (run / "training.json").write_text(json.dumps(costs))
    if verb == "evaluate":
        shutil.copy(here / "predictions.parquet", run)
        metrics = {{"schema": 3, "answers": "ranked", "metric": "accuracy", "score": 2 / 3, "num_examples": 30}}
        metrics |= {{"confidence_interval": [0.5, 0.8], "figures": {{}}}}
        metrics["adapter_sha256"] = sha256(weights) if weights.exists() else None
        (run / "metrics.json").write_text(json.dumps(metrics))
    if verb == "stage1":
        base = pathlib.Path(rest[rest.index("--output") + 1])
        base.mkdir()
        # As JSON of a checksum is written, so the file's checksum is the model's fingerprint.
        (base / "config.json").write_text('{{"merged":"' + sha256(weights) + '"}}')

for run in runs:
    assert (run / "config.yaml").exists()
    if not (verb == "train" and (run / "training.json").exists()):
        do(verb, run)
    if "--evaluate" in rest:
        do("evaluate", run)
"""

# The sweep as a process of its own, whose single-process commands go to the stand-in too.
# A shell that starts the tests in the background has them ignore Ctrl-C, which their children inherit.
AS_PROCESS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.executable = sys.argv[1]
from flare_ds.sweep.local import sweep
sys.exit(sweep(sys.argv[2]))
"""

CELLS = [f"pl/{name}" for name in ("zero_shot-seed1", "lora-seed1", "lora-seed2", "flare-seed1", "flare-seed2")]
UNTUNED = 'model.base="models/small"'  # the tuned base, whose tokenizer is the same, is not there yet
PREPARED = ["prepare stage1", f"prepare pl/zero_shot-seed1 {UNTUNED}"]


class Bench:
    """A sweep YAML and the stand-in, in one directory."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.out = directory / "out"
        self.path = directory / "sweep.yaml"
        self.stand_in = directory / "stand_in"
        self.stand_in.write_text(STAND_IN.format(python=sys.executable))
        self.stand_in.chmod(0o755)
        for read in ("models/small", "data"):
            (directory / read).mkdir(parents=True)
        monkeypatch.chdir(directory)
        rows = [{"id": str(i), "label": "a", "prediction": "a" if i % 3 else "b"} for i in range(30)]
        write_predictions(directory / "predictions.parquet", rows)
        self.python = sys.executable
        monkeypatch.setattr(sys, "executable", str(self.stand_in))
        self.settings = {
            "base": {
                "deepspeed": "ds.json",
                "model": {"base": "models/small"},
                "task": {"name": "multiemo", "data_dir": "data"},
                "train": {"steps": 40},
            },
            "out": str(self.out),
            "launch": f"{self.stand_in} --ranks 2 --module",
            "stage1": {"train": {"steps": 60}},
            "grid": {"languages": ["pl"], "methods": ["zero_shot", "lora", "flare"], "seeds": [1, 2]},
            "methods": {"flare": {"adapter": {"pairing": "input"}}},
        }
        self.write()

    def write(self) -> None:
        self.path.write_text(yaml.safe_dump(self.settings, sort_keys=False))

    def calls(self) -> list[str]:
        """What the stand-in was asked for since the last look."""
        file = self.directory / "calls.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines

    def start(self, hang: str) -> subprocess.Popen:
        """Start the sweep as a process, and wait until it hangs in the call named."""
        process = subprocess.Popen(
            [self.python, "-c", AS_PROCESS, str(self.stand_in), str(self.path)],
            env={**inherited(), "HANG": hang},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        wait_for((self.directory / "hanging.txt").exists)
        return process

    def hanging(self) -> list[int]:
        """Process ids of the command that hangs, and of its child."""
        file = self.directory / "hanging.txt"
        wait_for(lambda: len(file.read_text().split()) == 2)
        return [int(word) for word in file.read_text().split()]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def expected_calls(cells: Sequence[str] = CELLS) -> list[str]:
    calls = []
    for cell in cells:
        calls += [f"evaluate {cell}" if "zero_shot" in cell else f"train {cell} --evaluate"]
    return calls


def stage1_calls(bench: Bench) -> list[str]:
    return [f"stage1 stage1 --output {bench.out}/base", "evaluate stage1"]
