"""docs/settings.md is what the settings themselves say, all of them."""

import re

import yaml

from docs.make_settings import settings_page
from flare_ds.config import Config
from flare_ds.methods import METHODS
from tests.test_shipped_configs import leaves
from tests.toy import REPOSITORY

LINE = re.compile(r"^\| `([\w.]+)` \| .+ \| (required|`.+`) \| (.+) \|$", re.MULTILINE)


def test_the_page_is_what_the_settings_say() -> None:
    page = (REPOSITORY / "docs/settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "python docs/make_settings.py docs/settings.md"


def test_every_setting_is_there_with_its_default() -> None:
    """Asked of the models, not of their schema."""
    found = {name: (default, what) for name, default, what in LINE.findall(settings_page())}
    assert found.keys() == leaves(Config).keys()
    for name, field in leaves(Config).items():
        default, what = found[name]
        assert what == field.description
        assert (default == "required") == field.is_required(), name
        if not field.is_required():
            real = list(field.default) if isinstance(field.default, tuple) else field.default
            assert yaml.safe_load(default.strip("`")) == real, name


def test_the_methods_that_read_several_sources_are_named() -> None:
    task = {"name": "multiemo", "target_language": "pl", "extra_source_languages": ["de", "es"]}
    run = {"run_dir": "run", "model": {"base": "base"}, "task": task, "source": {"mt_encoder": "nllb"}}
    several = []
    for method in METHODS:
        try:
            config = Config.model_validate(run | {"method": method, "train": {"steps": 1}})
        except ValueError:  # it refuses them
            continue
        several += [method] if len(config.sources_read) == 3 else []
    found = {name: what for name, _, what in LINE.findall(settings_page())}
    assert found["task.extra_source_languages"].endswith(f"({', '.join(several)})")
