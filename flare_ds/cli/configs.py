"""Verbs about configs: new, check, config."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from flare_ds.cli.arguments import add_config, add_verb, config_of, typed_path
from flare_ds.exceptions import ConfigError
from flare_ds.failures import say

if TYPE_CHECKING:
    from flare_ds.cli.arguments import Verbs


def add_verbs(verbs: "Verbs") -> None:
    """Declare them."""
    summary = "write a config to begin with, with a comment on each setting"
    examples = ["flare-ds new run.yaml --task multiemo --model models/gemma --languages en,pl"]
    new = add_verb(verbs, "new", _new, summary, examples)
    new.add_argument("file", type=typed_path, metavar="FILE", help="file to write; an existing one is not overwritten")
    task = "a task that `flare-ds tasks` lists, or a YAML file of your own task"
    new.add_argument("--task", required=True, metavar="NAME", help=task)
    new.add_argument("--model", required=True, metavar="DIR", help="directory or hub name of the base")
    new.add_argument("--method", default="flare", metavar="NAME", help="one of docs/methods.md (default: %(default)s)")
    new.add_argument(
        "--languages",
        type=lambda text: text.split(","),
        default=[],
        metavar="SOURCE,TARGET",
        help="language codes (default: English and the task's next one)",
    )
    data = "directory with the task's files (default: where `flare-ds fetch data` puts them; else the hub)"
    new.add_argument("--data", type=typed_path, metavar="DIR", help=data)
    summary = "check a config without running it: print its problems, or the resolved config and what it would do"
    check = add_verb(verbs, "check", _check, summary, ["flare-ds check run.yaml train.steps=100"])
    add_config(check)
    summary = "print the JSON schema of a config, for editors"
    config = add_verb(verbs, "config", _config, summary, ["flare-ds config --schema"])
    config.add_argument("--schema", action="store_true", required=True, help="all settings, their types and defaults")


def _new(options: argparse.Namespace) -> None:
    from flare_ds.fetch.fetch import home
    from flare_ds.fetch.sources import DATA
    from flare_ds.files import write_text
    from flare_ds.new_config import new_config

    fetched = home() / "data" / options.task if options.task in DATA else None
    data = options.data or fetched
    text = new_config(
        task=options.task,
        base=options.model,
        method=options.method,
        languages=options.languages,
        data_dir=data and str(data),
    )
    if options.file.exists():
        raise ConfigError(f"{options.file} exists already", fix="choose another name, or delete it")
    write_text(options.file, text)
    if data == fetched and fetched is not None and not fetched.is_dir():
        say(f"the data is still to be fetched: flare-ds fetch data {options.task}")
    print(options.file)


def _check(options: argparse.Namespace) -> None:
    config, origin = config_of(options), str(options.config)

    from flare_ds.fetch.needed import check_needed

    check_needed(config, origin=origin)

    from flare_ds.training.check import check_run

    lines = check_run(config, origin=origin)
    print("\n".join(lines), file=sys.stderr)
    print(config.to_yaml(), end="")


def _config(options: argparse.Namespace) -> None:
    print(json.dumps(config_schema(), indent=2))


def config_schema() -> dict[str, Any]:
    """The settings of a run as a JSON schema, for editors; which of them go together it does not say."""
    from flare_ds.adapters.fusion import FUSIONS
    from flare_ds.config import Config
    from flare_ds.methods import METHODS
    from flare_ds.tasks.base import TASKS

    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A run of flare_ds"
    schema["properties"]["method"]["enum"] = list(METHODS)
    schema["$defs"]["AdapterConfig"]["properties"]["fusion"]["enum"] = list(FUSIONS)
    schema["$defs"]["TaskConfig"]["properties"]["name"]["examples"] = list(TASKS)
    return schema
