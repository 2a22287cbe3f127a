"""Every shipped YAML validates, and says of every setting what its type and default are."""

import re
from pathlib import Path

import pytest
import yaml

from flare_ds.config import Config, load_config
from flare_ds.sweep_config import load_sweep

CONFIGS = sorted((Path(__file__).parent.parent / "launchers/configs").glob("*.yaml"))
RUNS = [path for path in CONFIGS if "grid" not in yaml.safe_load(path.read_text())]
SWEEPS = [path for path in CONFIGS if path not in RUNS]
MENTIONED = re.compile(r"#.*\((.+)\)")


def test_there_are_both_kinds() -> None:
    assert RUNS and SWEEPS


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_shipped_run_validates_and_round_trips(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    saved = tmp_path / "config.yaml"
    saved.write_text(config.to_yaml())
    assert load_config(saved) == config


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_shipped_sweep_validates(path: Path) -> None:
    assert load_sweep(path).runs


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_setting_is_commented_with_type_and_default(path: Path) -> None:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(": ")
        if line.lstrip().startswith("#") or not value.partition("#")[0].strip():
            continue
        assert MENTIONED.search(line) or not re.match(r"\s+\w+$", key), f"{path.name}: no (type, default) in {line!r}"


def defaults(model: type, prefix: str = "") -> dict[str, object]:
    """Default of every leaf setting that has one."""
    found: dict[str, object] = {}
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            found |= defaults(field.annotation, f"{prefix}{name}.")
        elif not field.is_required():
            found[prefix + name] = field.default
    return found


def test_the_stated_defaults_are_the_real_ones() -> None:
    known = {
        name.rpartition(".")[2]: value for name, value in defaults(Config).items() if name != "evaluate.batch_size"
    }
    checked = 0
    for path in CONFIGS:
        section = ""
        for line in path.read_text().splitlines():
            section = line.split(":")[0].strip() if re.match(r"\s*\w+:\s*(#.*)?$", line) else section
            match = re.match(r"\s+(\w+): .*#.*\(.*default ([^)=]+?)( = all)?\)", line)
            if match and match[1] in known and section != "evaluate" and match[2] != "q_proj and v_proj":
                assert yaml.safe_load(match[2]) == known[match[1]] or float(match[2]) == known[match[1]], line
                checked += 1
    assert checked > 40
