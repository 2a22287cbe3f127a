"""docs/settings.md, all settings of a run, written by `python docs/make_settings.py docs/settings.md`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flare_ds.cli.configs import config_schema

_BEGINNING = """\
# Settings

Every setting of a run: what it may be, and its default. Set it in the YAML, or behind the file on the command line:
`flare-ds train run.yaml train.steps=100`. `flare-ds check run.yaml` says which settings do not go together. The keys of
a sweep are in [sweeps](sweeps.md), those of a task file in [tasks](tasks.md).

<!-- Written by python docs/make_settings.py docs/settings.md from the settings themselves. -->
"""
_MORE = {
    "model": "models.md",
    "task": "tasks.md",
    "translate": "translation.md",
    "source": "adapter.md#where-the-source-states-come-from",
    "adapter": "adapter.md",
    "mixup": "methods.md",
    "train": "batching.md",
    "evaluate": "batching.md",
    "tracking": "report.md#curves",
}
"""The page that says more of a section."""
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_TYPES = {"integer": "int", "number": "float", "boolean": "true or false", "string": "text", "null": "null"}


def settings_page() -> str:
    """The whole page."""
    schema = config_schema()
    sections = {name: schema["$defs"][one["$ref"].split("/")[-1]] for name, one in _parts(schema) if "$ref" in one}
    top = [_line(name, one, schema) for name, one in _parts(schema) if name not in sections]
    parts = [_BEGINNING, "## A run\n", *_table(top)]
    for name, section in sections.items():
        more = f" More: [{Path(_MORE[name]).stem}]({_MORE[name]})." if name in _MORE else ""
        parts += [f"## {name}\n", f"{section['description'].splitlines()[0]}{more}\n"]
        parts += _table([_line(f"{name}.{key}", one, section) for key, one in _parts(section)])
    return "\n".join(parts)


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from schema["properties"].items()


def _table(lines: list[str]) -> list[str]:
    return ["| setting | values | default | what |", "|---|---|---|---|", *lines, ""]


def _line(name: str, setting: dict[str, Any], section: dict[str, Any]) -> str:
    default = "required" if name.split(".")[-1] in section.get("required", ()) else f"`{_yaml(setting['default'])}`"
    return f"| `{name}` | {_values(setting)} | {default} | {setting['description']} |"


def _values(setting: dict[str, Any]) -> str:
    if "anyOf" in setting:
        return " or ".join(map(_values, setting["anyOf"]))
    if "enum" in setting or "const" in setting:
        return ", ".join(f"`{_yaml(value)}`" for value in setting.get("enum", [setting.get("const")]))
    if setting["type"] == "array":
        return f"list of {_values(setting['items'])}"
    bounds = [f"{sign} {setting[bound]}" for bound, sign in _BOUNDS.items() if bound in setting]
    return " ".join([_TYPES[setting["type"]], " and ".join(bounds)]).strip()


def _yaml(value: Any) -> str:
    return json.dumps(value).replace('"', "")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(settings_page(), encoding="utf-8")
