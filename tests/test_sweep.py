"""The sweep's logic: what it runs, skips, refuses and continues, with a stand-in for the commands it starts.

The stand-in is a script that does what train, evaluate, merge and prepare leave behind, in no time. It is started, seen
and ended as the real commands are: real processes, signals and files. Distributed training is tested elsewhere.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from flare_ds.exceptions import ConfigError, HostError
from flare_ds.processes import log_tail, run_logged
from flare_ds.settings import load_config
from flare_ds.sweep import sweep
from flare_ds.sweep_config import load_sweep

STAND_IN = """#!{python}
import json, os, pathlib, subprocess, sys, time
import yaml

verb, path, *rest = sys.argv[sys.argv.index("flare_ds") + 1 :]
run = pathlib.Path(path)
run = run if run.is_dir() else run.parent
config = yaml.safe_load((run / "config.yaml").read_text())
here = pathlib.Path(__file__).parent
call = f"{{verb}} {{run.relative_to(here / 'out')}}"
with (here / "calls.txt").open("a") as file:
    print(call, *rest, file=file)
print("hello from", call, flush=True)
if call == os.environ.get("HANG"):
    child = subprocess.Popen(["sleep", "600"])
    (here / "hanging.txt").write_text(f"{{os.getpid()}} {{child.pid}}")
    time.sleep(600)
if call == os.environ.get("FAIL"):
    sys.exit("no luck with " + call)
if verb == "train":
    costs = {{"trained_parameters": 10, "median_step_seconds": 0.5, "tokens_per_second": 100.0}}
    (run / "training.json").write_text(json.dumps(costs))
if verb == "evaluate":
    rows = [{{"id": str(i), "label": "a", "prediction": "a" if i % 3 else "b"}} for i in range(30)]
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
    metrics = {{"schema": 2, "metric": "accuracy", "score": 2 / 3, "num_examples": 30}}
    metrics["confidence_interval"] = [0.5, 0.8]
    (run / "metrics.json").write_text(json.dumps(metrics))
if verb == "merge":
    pathlib.Path(rest[rest.index("--output") + 1]).mkdir()
"""

# The sweep as a process of its own, whose single-process commands go to the stand-in too.
# A shell that starts the tests in the background has them ignore Ctrl-C, which their children inherit.
AS_PROCESS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.executable = sys.argv[1]
from flare_ds.sweep import sweep
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
            "methods": {"flare": {"adapter": {"pairing": "module"}}},
        }
        self.write()

    def write(self) -> None:
        self.path.write_text(yaml.safe_dump(self.settings))

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
            env={**os.environ, "HANG": hang},
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


def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


def expected_calls(cells=tuple(CELLS)) -> list[str]:
    calls = []
    for cell in cells:
        calls += [f"evaluate {cell}"] if "zero_shot" in cell else [f"train {cell}", f"evaluate {cell}"]
    return calls


def stage1_calls(bench: Bench) -> list[str]:
    return ["train stage1", "evaluate stage1", f"merge stage1 --output {bench.out}/base"]


def test_every_stage_runs_once_in_order(bench, capfd):
    assert sweep(bench.path) == 0
    assert bench.calls() == [*PREPARED, *stage1_calls(bench), *expected_calls()]
    console = capfd.readouterr().out
    assert "hello from train pl/flare-seed2" in console
    assert "stage pl/flare-seed2 train done in" in console
    assert "flare − lora" in console and "s  in all" in console
    log = (bench.out / "pl/lora-seed1/log.txt").read_text()
    assert log.count("hello from") == 2 and f"{bench.stand_in} --ranks 2 --module flare_ds train" in log


def test_each_run_gets_its_own_config(bench):
    sweep(bench.path)
    stage1 = load_config(bench.out / "stage1")
    assert (stage1.method, stage1.task.target_language, stage1.train.steps) == ("lora", "en", 60)
    assert stage1.model.base == "models/small"
    flare, lora = load_config(bench.out / "pl/flare-seed2"), load_config(bench.out / "pl/lora-seed2")
    assert (flare.method, flare.train.seed, flare.train.steps) == ("flare", 2, 40)
    assert flare.model.base == lora.model.base == str(bench.out / "base")
    assert (flare.adapter.pairing, lora.adapter.pairing) == ("module", "output")
    assert flare.run_dir == str(bench.out / "pl/flare-seed2")


def test_a_second_call_runs_nothing(bench, capfd):
    sweep(bench.path)
    bench.calls()
    capfd.readouterr()
    assert sweep(bench.path) == 0
    assert bench.calls() == []
    console = capfd.readouterr().out
    assert console.count("skipped (finished)") == 2 + 3 + len(CELLS)
    assert "0.667" in console


def test_a_base_that_is_tuned_already_needs_no_stage_1(bench):
    bench.settings["stage1"] = None
    bench.write()
    assert sweep(bench.path) == 0
    assert bench.calls() == ["prepare pl/zero_shot-seed1", *expected_calls()]
    assert load_config(bench.out / "pl/flare-seed1").model.base == "models/small"


def test_a_grid_that_grows_runs_only_what_is_new(bench):
    sweep(bench.path)
    bench.calls()
    assert sweep(bench.path, ["grid.languages=[pl, es]", "grid.seeds=[1]"]) == 0
    new = [f"es/{method}-seed1" for method in ("zero_shot", "lora", "flare")]
    assert bench.calls() == [f"prepare es/zero_shot-seed1 {UNTUNED}", *expected_calls(new)]


def test_a_failing_cell_does_not_stop_the_others(bench, monkeypatch, capfd):
    monkeypatch.setenv("FAIL", "train pl/lora-seed1")
    assert sweep(bench.path) == 1
    assert bench.calls()[5:] == [call for call in expected_calls() if call != "evaluate pl/lora-seed1"]
    console = capfd.readouterr().out
    assert "stage pl/lora-seed1 train FAILED (exit status 1)" in console
    assert console.count("no luck with train pl/lora-seed1") == 2  # as it happened, and at the end
    assert "unfinished: not started" in console
    monkeypatch.delenv("FAIL")
    assert sweep(bench.path) == 0
    assert bench.calls()[1:] == ["train pl/lora-seed1", "evaluate pl/lora-seed1"]


def test_a_cell_whose_evaluation_failed_is_not_trained_again(bench, monkeypatch):
    monkeypatch.setenv("FAIL", "evaluate pl/flare-seed1")
    assert sweep(bench.path) == 1
    bench.calls()
    monkeypatch.delenv("FAIL")
    assert sweep(bench.path) == 0
    assert bench.calls()[1:] == ["evaluate pl/flare-seed1"]


def test_without_stage_1_no_cell_runs(bench, monkeypatch, capfd):
    monkeypatch.setenv("FAIL", "merge stage1")
    assert sweep(bench.path) == 1
    assert bench.calls() == [*PREPARED, *stage1_calls(bench)]
    assert "stage 1 failed" in capfd.readouterr().out


def test_cells_without_a_cache_are_not_run_but_others_are(bench, monkeypatch, capfd):
    monkeypatch.setenv("FAIL", "prepare es/zero_shot-seed1")
    assert sweep(bench.path, ["grid.languages=[es, pl]"]) == 1
    assert bench.calls()[-len(expected_calls()) :] == expected_calls()
    assert "stage es/flare-seed2 not run: its cache could not be prepared" in capfd.readouterr().out


def test_methods_that_read_the_data_differently_get_their_own_cache(bench):
    bench.settings["methods"]["flare"]["task"] = {"max_prompt_tokens": 64}
    bench.write()
    sweep(bench.path)
    assert [call for call in bench.calls() if call.startswith("prepare")] == [
        *PREPARED,
        f"prepare pl/flare-seed1 {UNTUNED}",
    ]


@pytest.mark.parametrize(
    ("override", "problem", "fix"),
    [
        ("base.train.steps=80", r"pl/.*train\.steps=40, now train\.steps=80", "delete .*/pl/zero_shot-seed1"),
        ("stage1.train.steps=80", r"stage1 .*train\.steps=60, now train\.steps=80", r"delete .*/out$"),
        ("methods.flare.adapter.r=4", r"pl/flare-seed1 .*adapter\.r=8, now adapter\.r=4", "delete .*/pl/flare-seed1"),
    ],
)
def test_a_run_with_other_settings_is_refused_before_anything_runs(bench, override, problem, fix):
    sweep(bench.path)
    bench.calls()
    with pytest.raises(ConfigError, match=problem) as error:
        sweep(bench.path, [override, "grid.languages=[pl, es]"])
    assert re.search(fix, error.value.fix)
    assert bench.calls() == []
    assert not (bench.out / "es").exists()


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("grid.langauges=[pl]", "did you mean 'languages'"),
        ("lunch=deepspeed", "did you mean 'launch'"),
        ("methods.flare.adapter.rank=4", r"'adapter\.rank'.*pl/flare-seed1"),
        ("methods.flair={}", "did you mean 'flare'"),
        ("grid.methods=[lora, flair]", "did you mean 'flare'"),
        ("grid.languages=[pl, xx]", "no language 'xx'"),
        ("grid.languages=[no]", r"grid\.languages\.0=False"),
        ("grid.seeds=[]", r"grid\.seeds=\[\]"),
        ("grid.seeds=[1, 1]", "names a cell twice"),
        ("grid.languages=[en]", "flare"),
        ("base.task.source_language=xx", "no language 'xx'"),
        ("base.task.name=multiemu", "did you mean 'multiemo'"),
        ("base.train.steps=0", r"train\.steps=0"),
        ("base.train=40", "base.train=40 .* is not a section"),
        ("base.task.target_language=pl", r"base\.task\.target_language='pl'.*the sweep sets"),
        ("base.run_dir=x", r"base\.run_dir"),
        ("stage1.method=flare", r"stage1\.method"),
        ("methods.lora.train.seed=3", r"methods\.lora\.train\.seed=3"),
        ("launch=", "launch"),
    ],
)
def test_a_wrong_setting_is_found_before_anything_runs(bench, override, problem):
    with pytest.raises(ConfigError, match=f"(?s){problem}"):
        sweep(bench.path, [override])
    assert bench.calls() == []
    assert not bench.out.exists()


def test_stage_1_may_have_its_own_seed(bench):
    assert load_sweep(bench.path, ["stage1.train.seed=7"]).stage1.config.train.seed == 7


def test_each_distributed_command_is_given_a_port(bench):
    assert sweep(bench.path, [f"launch={bench.stand_in} --port {{free_port}} --module"]) == 0
    ports = re.findall(r"^\$ .* --port (\d+) --module", (bench.out / "pl/lora-seed1/log.txt").read_text(), re.M)
    assert len(ports) == 2 and all(1024 <= int(port) < 65536 for port in ports)


def test_a_missing_launcher_is_named(bench):
    with pytest.raises(HostError, match="launch='no_such_launcher'"):
        sweep(bench.path, ["launch=no_such_launcher --module"])
    assert bench.calls() == []


@pytest.mark.parametrize("hang", ["train stage1", "evaluate pl/lora-seed2"])
def test_ctrl_c_ends_the_command_and_the_same_command_continues(bench, hang):
    process = bench.start(hang)
    process.send_signal(signal.SIGINT)
    console, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert console.splitlines()[-1].endswith(f"flare-ds sweep {bench.path}")
    wait_for(lambda: not any(map(alive, bench.hanging())))
    continues(bench, hang)


@pytest.mark.parametrize("hang", ["merge stage1", "train pl/lora-seed2"])
def test_after_kill_9_nothing_is_left_running_and_the_same_command_continues(bench, hang):
    process = bench.start(hang)
    pids = bench.hanging()
    assert all(map(alive, pids))
    process.kill()
    process.communicate()
    wait_for(lambda: not any(map(alive, pids)))
    continues(bench, hang)


def continues(bench: Bench, hang: str) -> None:
    """The same command does the interrupted stage again, and no finished one."""
    everything = [*PREPARED, *stage1_calls(bench), *expected_calls()]
    interrupted = next(call for call in everything if call.startswith(hang))
    assert bench.calls()[-1] == interrupted
    assert sweep(bench.path) == 0
    calls = [call for call in bench.calls() if not call.startswith("prepare")]
    assert calls == everything[everything.index(interrupted) :]


def test_two_sweeps_never_write_the_same_directory(bench):
    process = bench.start("train stage1")
    with pytest.raises(HostError, match=f"process {process.pid}"):
        sweep(bench.path)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def test_a_command_that_ignores_the_signals_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("flare_ds.processes._PATIENCE_S", 0.2)
    script = (
        "import os, signal, time; [signal.signal(s, signal.SIG_IGN) for s in (2, 15)]; print(os.getpid(), flush=True)"
    )
    log = tmp_path / "log.txt"
    pids = []

    def interrupt(chunk, file):
        pids.append(int(chunk))
        raise KeyboardInterrupt

    monkeypatch.setattr("flare_ds.processes._show", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_logged([os.path.realpath("/proc/self/exe"), "-c", f"{script}; time.sleep(600)"], log)
    assert not alive(pids[0])


def test_the_tail_of_a_log_shows_a_progress_bar_once(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("first\nstep 1\rstep 2\rstep 3\n\nerror: no\n")
    assert log_tail(log, 2) == "step 3\nerror: no"


def test_the_saved_report_is_the_printed_one(bench, capfd):
    sweep(bench.path)
    assert (bench.out / "report.md").read_text() in capfd.readouterr().out


def test_the_launcher_starts_the_sweep_in_the_clone_from_any_directory(bench):
    root = Path(__file__).parents[1]
    commands = bench.directory / "venv/bin"
    commands.mkdir(parents=True)
    (commands / "python").symlink_to(bench.python)
    (commands / "flare-ds").write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    (commands / "flare-ds").chmod(0o755)
    script = root / "launchers/sweep_languages.sh"

    def launch(*arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "FLARE_DS_VENV": str(commands.parent)}
        return subprocess.run(
            [script, *arguments], cwd=bench.directory, env=environment, capture_output=True, text=True
        )

    started = launch("sweep.yaml", "grid.languages=[pl, es]")
    assert started.stdout.splitlines() == [str(root), "sweep", str(bench.path), "grid.languages=[pl, es]"]
    assert "sweep_languages.sh SWEEP.yaml" in launch("--help").stdout
    for wrong, problem in {"": "no sweep is named", "none.yaml": "no such file: none.yaml"}.items():
        result = launch(wrong)
        assert (result.returncode, result.stdout) == (1, "")
        assert problem in result.stderr and "fix:" in result.stderr
