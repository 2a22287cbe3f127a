"""Trains the variants of a study, each as a run of its own, and tabulates what they reach on the validation rows.

    python benchmarks/fusion_study.py STUDY.yaml [key=value ...] [--table-only]

`study.py` says what a study is, `study_tables.py` what its tables show. The same command continues a study wherever it
stopped: finished runs are skipped, an unfinished one goes on after its last saved step, one that fails does not stop
the others. Test rows are never scored.
"""

import argparse
import shlex
import sys
from pathlib import Path

from study import Study, is_trained, load_study
from study_tables import tables

from flare_ds.exceptions import FlareError
from flare_ds.failures import say
from flare_ds.files import write_text
from flare_ds.processes import free_port, only_one, run_logged
from flare_ds.runs import RunResult


def main() -> int:
    """Train what is not trained yet, print the tables; 1 if a run failed or the study is not a study."""
    parser = argparse.ArgumentParser(description="train the variants of a study and tabulate their validation scores")
    parser.add_argument("study", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. base.model.base=runs/languages/base")
    parser.add_argument("--table-only", action="store_true", help="of what is trained so far; train nothing")
    options = parser.parse_intermixed_args()
    try:
        study = load_study(options.study, options.overrides)
        failed = [] if options.table_only else train_all(study)
        text = tables(
            load_study(options.study, options.overrides)
        )  # reads the runs again, which remember what they read
        study.file.out.mkdir(parents=True, exist_ok=True)
        write_text(study.file.out / "tables.md", text)
    except FlareError as error:
        say(str(error))
        return 1
    print(text)
    for run in failed:
        print(f"FAILED: {run.directory}, see its log.txt", file=sys.stderr)
    return 1 if failed else 0


def train_all(study: Study) -> list[RunResult]:
    """Train every run that is not trained yet; returns those that failed.

    Raises:
        HostError: another process is training the same study.
    """
    study.file.out.mkdir(parents=True, exist_ok=True)
    failed = []
    with only_one(study.file.out):
        left = [run for run in study.runs.values() if not is_trained(run)]
        for number, run in enumerate(left, start=1):
            print(f"run {number} of {len(left)}: {run.directory} ({run.progress})", file=sys.stderr, flush=True)
            if not train(run, study.file.launch):
                failed.append(run)
    return failed


def train(run: RunResult, launch: str) -> bool:
    """Build or find the run's cache, then train; whether both went well."""
    run.directory.mkdir(parents=True, exist_ok=True)
    write_text(run.directory / "config.yaml", run.config.to_yaml())
    prepare = [sys.executable, "-m", "flare_ds", "prepare", str(run.directory)]
    start = [word.replace("{free_port}", free_port()) for word in shlex.split(launch)]
    commands = [prepare, [*start, "flare_ds", "train", str(run.directory / "config.yaml")]]
    return all(run_logged(command, run.directory / "log.txt") == 0 for command in commands)


if __name__ == "__main__":
    sys.exit(main())
