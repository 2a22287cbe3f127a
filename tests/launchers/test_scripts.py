"""All launchers: they parse, their help shows their usage, and they find the clone."""

import os
import shutil
from pathlib import Path

import pytest

from tests.launchers.shell import LAUNCHERS, ROOT, run, tool_path

SCRIPTS = sorted([*LAUNCHERS.glob("*.sh"), *LAUNCHERS.glob("*.sbatch"), ROOT / "benchmarks/gpu.sh", ROOT / ".ci/run"])

HELPFUL = ["quickstart.sh", "test.sh", "hostfile.sh", "slurm.sbatch", "slurm_task.sh", "sweep_languages.sh"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_parse(script: Path) -> None:
    assert run(["bash", "-n", script]).stderr == ""
    assert "set -euo pipefail" in script.read_text(encoding="utf-8") or script.name == "common.sh"
    assert os.access(script, os.X_OK) or script.suffix == ".sbatch" or script.name == "common.sh"


@pytest.mark.parametrize("name", HELPFUL)
def test_help_shows_the_usage_and_nothing_else(name: str, tmp_path: Path) -> None:
    result = run(["bash", LAUNCHERS / name, "--help"], cwd=tmp_path, PATH=str(tool_path(tmp_path)))
    assert result.returncode == 0, result.stderr
    assert f"launchers/{name}" in result.stdout
    assert "set -e" not in result.stdout and "#" not in result.stdout


@pytest.mark.parametrize("name", HELPFUL)
def test_a_link_to_a_launcher_finds_the_clone(name: str, tmp_path: Path) -> None:
    (tmp_path / "my-launcher").symlink_to(LAUNCHERS / name)
    result = run(["bash", tmp_path / "my-launcher", "--help"], cwd=tmp_path)
    assert result.returncode == 0 and f"launchers/{name}" in result.stdout, result.stderr


def test_git_does_not_see_what_is_made_in_the_clone(tmp_path: Path) -> None:
    """Directories may be links to a larger disk."""
    shutil.copy(ROOT / ".gitignore", tmp_path)
    for name in (".venv", "runs", "translations", "models", "data"):
        (tmp_path / name).symlink_to("/tmp")
    for name in (".deepspeed_env", "hosts", "flare_ds-7.log", "slurm-8.out"):
        (tmp_path / name).touch()
    run(["git", "init", "--quiet"], cwd=tmp_path)
    assert run(["git", "status", "--porcelain"], cwd=tmp_path).stdout == "?? .gitignore\n"


@pytest.mark.parametrize("cdpath", [".", "/"])
def test_cdpath_does_not_lead_astray(cdpath: str, clone: Path) -> None:
    script = 'source launchers/common.sh; printf "[%s]" "$root"'
    assert run(["bash", "-c", script], cwd=clone, CDPATH=cdpath).stdout == f"[{clone}]"


def test_a_site_file_is_read_as_a_shell_reads_it_by_hand(clone: Path) -> None:
    """Files of the kind name variables that may be unset, and run what may fail."""
    site = 'export LD_LIBRARY_PATH="/opt/nccl/lib:$LD_LIBRARY_PATH"\nfalse\n'
    (clone / "launchers/env.sh").write_text(site)
    script = 'set -euo pipefail; source launchers/common.sh; printf "%s %s" "$LD_LIBRARY_PATH" "$-"; echo "$UNSET"'
    result = run(["bash", "-c", script], cwd=clone)
    library_path, options = result.stdout.split()
    assert library_path == "/opt/nccl/lib:" and set("eu") <= set(options)
    assert result.returncode == 1 and "UNSET: unbound variable" in result.stderr
