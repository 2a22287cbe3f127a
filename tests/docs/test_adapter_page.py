"""docs/adapter.md tells every setting of the adapter, and its default first."""

import re

import yaml

from flare_ds.config import AdapterConfig
from tests.distributed import REPOSITORY

LINE = re.compile(r"^\| (`adapter\.[^|]+) \| ([^|]+) \|", re.MULTILINE)


def test_every_setting_is_there_with_its_default_first() -> None:
    found = {}
    for names, values in LINE.findall((REPOSITORY / "docs/adapter.md").read_text(encoding="utf-8")):
        settings = [name.removeprefix("adapter.") for name in re.findall("`([^`]+)`", names)]
        told = yaml.safe_load(f"[{values}]")  # of several settings a value each, of one setting its default first
        found.update(zip(settings, told, strict=len(settings) > 1))
    defaults = {name: field.default for name, field in AdapterConfig.model_fields.items()}
    assert found == defaults
