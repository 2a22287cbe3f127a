"""Run the benchmarks, keep the JSON of each in results/, and write RESULTS.md from what is there.

    python benchmarks/run.py                                # all of them, on small random models
    python benchmarks/run.py step_cost cache                # some of them
    python benchmarks/run.py --config RUN.yaml              # a run's base and task, where a benchmark takes one
    python benchmarks/run.py --tiny                         # smallest sizes: whether they run, not what they say
    python benchmarks/run.py --page                         # no measuring: the page alone

No figure of the page is typed by hand: each table is what a script printed, below the machine and the arguments that it
had. What was never measured is named. What was measured before this script was there is kept in results/earlier.md.
"""

import argparse
import ast
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from textwrap import fill
from typing import Any

from flare_ds.files import write_json, write_text
from flare_ds.settings import load_config

HERE = Path(__file__).parent
LIBRARIES = ("torch", "deepspeed", "transformers", "peft")
BENCHMARKS: dict[str, tuple[str, list[str], list[str]]] = {
    "gather_volume": ("gather_volume", [], []),
    "step_cost": ("step_cost", [], ["--steps", "1", "--batch", "2", "--length", "8"]),
    "step_cost_short_source": (
        "step_cost",
        ["--length", "64", "--source-length", "32"],
        ["--length", "8", "--source-length", "4", "--steps", "1", "--batch", "2"],
    ),
    "step_cost_engine": ("step_cost", ["--engine", "2"], ["--engine", "2", "--steps", "1", "--variants", "flare"]),
    "peer_trainer": ("peer_trainer", [], ["--rounds", "1", "--steps", "3"]),
    "memory_parts": ("memory_parts", [], ["--batch", "2", "--length", "8"]),
    "head_memory": ("head_memory", [], ["--vocabulary", "32768", "--length", "16"]),
    "host_time": ("host_time", [], ["--steps", "1"]),
    "engines": ("engines", [], ["--steps", "1", "--rounds", "1", "--length", "8"]),
    "together": ("together", [], ["--steps", "1", "--rounds", "1", "--length", "8", "--cells", "1", "2"]),
    "together_2_ranks": (
        "together",
        ["--ranks", "2"],
        ["--ranks", "2", "--steps", "1", "--rounds", "1", "--length", "8", "--cells", "1", "2"],
    ),
    "sweep_time": ("sweep_time", [], ["--cells", "2"]),
    "large_sweep": ("large_sweep", [], ["--cells", "100", "--steps", "20", "--rows", "10"]),
    "adapted_linears": ("adapted_linears", [], ["--steps", "1", "--layers", "2", "--width", "64"]),
    "startup": ("startup", [], ["--ranks", "1", "--repeat", "1"]),
    "evaluation": ("evaluation", [], ["--rows", "4", "--length", "8", "--written", "2", "--repeat", "1"]),
    "scaling": ("scaling", [], ["--factor", "2", "--steps", "1"]),
    "cache": (
        "cache",
        [],
        ["--rows", "3000", "--build-rows", "200", "--openings", "1", "--reader-rows", "100", "--load-rows", "2000"],
    ),
    "simulate_cluster": ("simulate_cluster", [], []),
}
"""Under the name of its result: the script, its arguments, and those that make it tiny."""
TAKES_MODEL = ("step_cost", "memory_parts", "together", "evaluation")
TAKES_CONFIG = ("peer_trainer",)
TAKES_RESULTS = ("simulate_cluster",)


def arguments_of(name: str, *, config: str | None, tiny: bool) -> list[str]:
    """The command line of a benchmark, behind its script."""
    script, usual, small = BENCHMARKS[name]
    arguments = small if tiny else usual
    if config is not None and script in TAKES_CONFIG:
        return [*arguments, "--config", str(Path(config).absolute())]
    if config is not None and script in TAKES_MODEL:
        model = load_config(config).model
        return [*arguments, "--model", str(Path(model.base).absolute()), "--dtype", model.dtype]
    return arguments


def measure(name: str, arguments: list[str], results: Path) -> None:
    """Run one, and keep what it printed."""
    command = [sys.executable, str(HERE / f"{BENCHMARKS[name][0]}.py"), *arguments]
    if BENCHMARKS[name][0] in TAKES_RESULTS:
        command += ["--results", str(results)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}; what was kept of it before is as it was")
    results.mkdir(exist_ok=True)
    shown = [Path(argument).name for argument in arguments]
    kept = {"machine": machine(), "arguments": shown, "found": json.loads(done.stdout)}
    write_json(results / f"{name}.json", kept)


def machine() -> str:
    """What it was measured on, and how busy that was."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    processor = models[0] if models else platform.machine()
    busy = os.getloadavg()[0]
    return f"{os.cpu_count()} cores of {processor}, {libraries}; load {busy:.1f} at the end"


def page(results: Path) -> str:
    """RESULTS.md, of what was kept."""
    beginning = (
        "# Measured\n\nWritten by `python benchmarks/run.py`; what each script measures: [README.md](README.md). "
        "Scores are in\n[docs/results.md](../docs/results.md). Where the load is above the number of ranks, only "
        "ratios mean something.\n"
    )
    files = {name: results / f"{name}.json" for name in BENCHMARKS}
    sections = [section(name, file) for name, file in files.items() if file.exists()]
    missing = ", ".join(f"`{name}`" for name, file in files.items() if not file.exists())
    sections += [fill(f"Not measured by it yet: {missing}.", 118) + "\n"] if missing else []
    return "\n".join([beginning, *sections, (HERE / "results/earlier.md").read_text(encoding="utf-8")])


def section(name: str, file: Path) -> str:
    """What was found by one benchmark."""
    script = BENCHMARKS[name][0]
    documented = ast.get_docstring(ast.parse((HERE / f"{script}.py").read_text(encoding="utf-8"))) or ""
    heading = f"## {name}\n\n{documented.splitlines()[0].removesuffix('; prints JSON.').removesuffix('.')}.\n"
    kept = json.loads(file.read_text(encoding="utf-8"))
    command = " ".join([f"{script}.py", *kept["arguments"]])
    return "\n".join([heading, f"`{command}`, on {kept['machine']}.\n", *tables(kept["found"], "")])


def tables(found: Mapping[str, Any], path: str) -> Iterator[str]:
    """Every number of a JSON but those in lists: a table where all values are alike, else one for each part."""
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float | str)}
    parts = {name: value for name, value in found.items() if isinstance(value, dict)}
    if numbers:
        yield table(path, {name: {"": value} for name, value in numbers.items()})
    flat = {name: part for name, part in parts.items() if not any(isinstance(value, dict) for value in part.values())}
    if len(flat) > 1 and len({tuple(part) for part in flat.values()}) == 1:
        yield table(path, flat)
    else:
        flat = {}
    for name, part in parts.items():
        if name not in flat:
            yield from tables(part, f"{path}.{name}".lstrip("."))


def table(path: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows and columns as Markdown."""
    columns = [name for name, value in next(iter(rows.values())).items() if not isinstance(value, list)]
    lines = [f"| {path} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(shown(row[column]) for column in columns) + " |" for name, row in rows.items()
    ]
    return "\n".join([*lines, ""])


def shown(value: Any) -> str:
    """A cell."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--config", help="a run's YAML, for its base and task")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    parser.add_argument("--into", type=Path, default=HERE, help="where results/ and RESULTS.md are (default: here)")
    given = parser.parse_args()
    if unknown := set(given.names) - set(BENCHMARKS):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    for name in [] if given.page else given.names or BENCHMARKS:
        measure(name, arguments_of(name, config=given.config, tiny=given.tiny), given.into / "results")
    write_text(given.into / "RESULTS.md", page(given.into / "results"))


if __name__ == "__main__":
    main()
