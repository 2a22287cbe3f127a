"""What a command imports before it works: every rank of every launch pays for it."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from flare_ds.cli.importing import libraries
from flare_ds.config import ModelConfig
from tests.toy import toy_settings, write_config, write_data, write_model

# Each of these takes a tenth of a second and more, and is used by few commands or by none.
TRAINING_NEEDS_NO = (
    "bitsandbytes",
    "datasets",
    "mlflow",
    "pandas",
    "pyarrow.compute",
    "pyarrow.parquet",
    "scipy.stats",
    "sklearn",
    "tensorboard",
    "torchvision",
)
PREPARING_NEEDS_NO = (*TRAINING_NEEDS_NO[:1], "deepspeed", "peft", "flare_ds.runtime.engine")
STARTING_RANKS_NEEDS_NO = ("deepspeed", "torch", "transformers")

SCRIPT = """
import sys
import flare_ds.cli, flare_ds.cli.ranks, flare_ds.settings
import flare_ds.runs.status, flare_ds.sweep.progress  # what `status` shows
flare_ds.cli.make_parser()
print(*sys.modules)
from flare_ds.cli.importing import libraries
with libraries(flare_ds.config.ModelConfig(base="any")):
    import flare_ds.training.evaluated, flare_ds.training.run, flare_ds.runtime.sharded
print(*(name for name, module in sys.modules.items() if module))
"""

PREPARE = """
import sys
from flare_ds.cli import main
assert main(["prepare", *sys.argv[1:]]) == 0
print(*(name for name, module in sys.modules.items() if module))
"""


def test_nothing_is_imported_that_a_command_does_not_need() -> None:
    """PEFT and DeepSpeed look for some of these; what they import of them themselves is not ours to leave out."""
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    before_ranks, before_training = (set(line.split()) for line in told.splitlines()[-2:])
    assert set() == before_ranks & set(STARTING_RANKS_NEEDS_NO)
    assert set() == before_training & set(TRAINING_NEEDS_NO)


def test_a_tracker_is_hidden_from_the_libraries_and_from_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed imports MLflow where it is installed; the run that logs to it imports it later."""
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with libraries(ModelConfig(base="any")):
        assert sys.modules["mlflow"] is None
    assert "mlflow" not in sys.modules
    loaded = ModuleType("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", loaded)
    with libraries(ModelConfig(base="any")):
        assert sys.modules["mlflow"] is loaded
    assert sys.modules["mlflow"] is loaded


def test_tokenizing_imports_nothing_that_trains(tmp_path: Path) -> None:
    """A sweep prepares a cache for each of its languages, in a process of its own."""
    write_model(tmp_path / "model", hidden=32)
    write_data(tmp_path / "data", rows=60)
    settings = toy_settings(tmp_path)
    settings["task"] |= {"validation_rows": 9, "test_rows": 10}
    command = [sys.executable, "-c", PREPARE, str(write_config(settings))]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert set() == set(told.splitlines()[-1].split()) & set(PREPARING_NEEDS_NO)


@pytest.mark.parametrize(("model", "hidden"), [({}, True), ({"quantization": "nf4"}, False)])
def test_a_quantised_base_finds_bitsandbytes(
    model: dict[str, str], hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("peft", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, name, None)  # puts back afterwards what was there
        del sys.modules[name]
    with libraries(ModelConfig.model_validate({"base": "any", **model})):
        assert ("bitsandbytes" in sys.modules) is hidden
