"""The settings of stage 1, from those of the run that is to stand on the tuned base: what it needs to know follows.

    method                    lora
    task.target_language      the source language; extra_source_languages: none; sides: own; evaluate.late: null
    run_dir                   stage1-SOURCE beside the run's

What is given on the command line wins. A config whose target language is the source language already is one of
stage 1 itself, and is taken as it is.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flare_ds.config import Config
from flare_ds.settings import load_config

_TARGET = "task.target_language"


def load_stage1(path: Path, overrides: Sequence[str] = (), *, trust_task_code: bool = False) -> Config:
    """Read the config of a run, and make it one of stage 1.

    Args:
        path: a YAML file or a run directory, of the run that follows or of stage 1 itself.
        overrides: `key=value`, as they were typed.
        trust_task_code: see `load_config`.
    """
    # A method that reads two languages is no reason to refuse: the method is another one here.
    run = load_config(path, ["method=lora", *overrides], trust_task_code=trust_task_code)
    typed = {override.partition("=")[0].strip() for override in overrides}
    own = run.has_source or _TARGET in typed
    return load_config(path, [*(_follows(run) if own else []), *overrides], trust_task_code=trust_task_code)


def _follows(run: Config) -> list[str]:
    source = run.task.source_language
    settings: dict[str, Any] = {
        "method": "lora",
        _TARGET: source,
        "task.extra_source_languages": [],
        "task.sides": "own",
        "evaluate.late": None,
        "run_dir": str(Path(run.run_dir).parent / f"stage1-{source}"),
    }
    return [f"{name}={json.dumps(value)}" for name, value in settings.items()]
