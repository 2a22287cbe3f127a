"""What a command imports before it works: every rank of every launch pays for it."""

import subprocess
import sys

import pytest

from flare_ds.cli.importing import libraries
from flare_ds.config import ModelConfig

# Each of these takes a tenth of a second and more, and is used by few commands or by none.
TRAINING_NEEDS_NO = (
    "bitsandbytes",
    "datasets",
    "pandas",
    "pyarrow.compute",
    "pyarrow.parquet",
    "scipy.stats",
    "sklearn",
    "tensorboard",
    "torchvision",
)
STARTING_RANKS_NEEDS_NO = ("deepspeed", "torch", "transformers")

SCRIPT = """
import sys
import flare_ds.cli, flare_ds.cli.ranks, flare_ds.settings
flare_ds.cli.make_parser()
print(*sys.modules)
from flare_ds.cli.importing import libraries
with libraries(flare_ds.config.ModelConfig(base="any")):
    import flare_ds.training.evaluated, flare_ds.training.run, flare_ds.runtime.sharded
print(*(name for name, module in sys.modules.items() if module))
"""


def test_nothing_is_imported_that_a_command_does_not_need() -> None:
    """PEFT and DeepSpeed look for some of these; what they import of them themselves is not ours to leave out."""
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    before_ranks, before_training = (set(line.split()) for line in told.splitlines()[-2:])
    assert set() == before_ranks & set(STARTING_RANKS_NEEDS_NO)
    assert set() == before_training & set(TRAINING_NEEDS_NO)


@pytest.mark.parametrize(("model", "hidden"), [({}, True), ({"quantization": "nf4"}, False)])
def test_a_quantised_base_finds_bitsandbytes(
    model: dict[str, str], hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("peft", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, name, None)  # puts back afterwards what was there
        del sys.modules[name]
    with libraries(ModelConfig.model_validate({"base": "any", **model})):
        assert ("bitsandbytes" in sys.modules) is hidden
