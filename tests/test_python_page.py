"""docs/python.md runs as it is printed, in one process, and the notebook asks the run that the page has trained."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

import flare_ds
from tests.distributed import REPOSITORY, run_ranks
from tests.toy import LABELS, toy_settings

NOTEBOOK = REPOSITORY / "examples/notebook.ipynb"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The page's directory, and what its blocks print; sizes are a toy's."""
    root = tmp_path_factory.mktemp("page")
    settings = toy_settings(root, name="runs/pl-flare", steps=2, validate_every=2)
    (root / "models").mkdir()
    (root / "models/base").symlink_to(root / "model")
    (root / "run.yaml").write_text(yaml.safe_dump(settings))
    (output,) = run_ranks(["tests.page_worker", str(REPOSITORY / "docs/python.md"), str(root)], 1)
    return root, output


def test_the_page_runs_as_it_is_printed(told: tuple[Path, str]) -> None:
    root, output = told
    assert "target[1] holds no text\n  fix: give one, or leave that row out" in output
    assert "# Report on runs" in output
    assert flare_ds.load(root / "runs/pl-flare").label("word1")[0].label in LABELS
    assert not (root / "runs/pl-flare/.lock").exists(), "others may use the run, though this process trained it"
    settings = json.loads((root / "own_adapter/adapter_config.json").read_text())
    assert settings["flare_ds"]["adapter.dropout"] == 0.05


def test_the_notebook_asks_that_run(told: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells), (
        "outputs are stripped"
    )
    monkeypatch.setenv("FLARE_RUN", str(told[0] / "runs/pl-flare"))
    NotebookClient(notebook, timeout=560, resources={"metadata": {"path": str(told[0])}}).execute()
    texts = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    labelled = next(text for text in texts if text.startswith("Czekałem"))
    assert [line.split()[-2] in LABELS for line in labelled.splitlines()] == [True] * 3


def test_importing_the_package_imports_nothing_else() -> None:
    heavy = ("torch", "numpy", "transformers", "pydantic", "yaml")
    command = f"import sys, flare_ds; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"


def test_the_package_says_what_it_has() -> None:
    assert set(flare_ds.__all__) <= set(dir(flare_ds))
    assert all(hasattr(flare_ds, name) for name in flare_ds.__all__)
    assert issubclass(flare_ds.DataError, flare_ds.FlareError)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        _ = flare_ds.lode
