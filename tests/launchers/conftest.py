"""What tests of launchers share."""

import shutil
from pathlib import Path

import pytest

from tests.launchers.shell import LAUNCHERS, PROBE, ROOT, write_program


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with our launchers, in which flare_ds is the probe."""
    clone = tmp_path / "clone"
    shutil.copytree(LAUNCHERS, clone / "launchers")
    for name in ("setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, clone)
    write_program(clone / "flare_ds/__main__.py", PROBE)
    (clone / "seen").mkdir()
    return clone
