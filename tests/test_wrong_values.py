"""A wrong value is told in one plain sentence with what to write, whatever types the setting has."""

from pathlib import Path

import pytest
import yaml

from flare_ds.exceptions import ConfigError
from flare_ds.settings import load_config
from flare_ds.sweep.grid import read_sweep
from tests.test_config_conflicts import SETTINGS
from tests.test_fuzzed_settings import SWEEP

PYDANTIC = ("Input should", "valid ", "constrained", "after validation", "Undefined", "tuple", "integer")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("values") / "run.yaml"
    path.write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("values") / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP | {"launch": None, "ranks": 1}), encoding="utf-8")
    return path


def refusal(read: object, path: Path, override: str) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        read(path, [override])  # type: ignore[operator]
    said = str(refused.value).replace(str(path), "FILE")
    assert not any(word in said for word in PYDANTIC), said
    assert "problems in" not in said, "one mistake is told once"
    return ConfigError(refused.value.problem.replace(str(path), "FILE"), fix=refused.value.fix)


@pytest.mark.parametrize(
    ("override", "problem", "fix"),
    [
        ("train.steps=ten", "train.steps='ten' in FILE is not a whole number", "set train.steps to a whole number"),
        ("train.steps=2.5", "train.steps=2.5 in FILE is not a whole number", "set train.steps to a whole number"),
        ("train.steps=0", "train.steps=0 in FILE is not a number of at least 1", "to a number of at least 1"),
        ("train.learning_rate=x", "train.learning_rate='x' in FILE is not a number", "to a number"),
        ("train.learning_rate=.nan", "train.learning_rate=nan in FILE is not a finite number", "to a finite number"),
        ("adapter.dropout=1", "adapter.dropout=1 in FILE is not a number below 1", "to a number below 1"),
        ("task.chat=maybe", "task.chat='maybe' in FILE is not true or false", "set task.chat to true or false"),
        ("task.extra_source_languages=de", "'de' in FILE is not a list", "e.g. task.extra_source_languages=[de]"),
        ("tracking.to=tensorboard", "tracking.to='tensorboard' in FILE is not a list", "tracking.to=[tensorboard]"),
        ("tracking.to=[x]", "tracking.to.0='x' in FILE is neither tensorboard, wandb nor mlflow", "use one of"),
        ("adapter.align=rigth", "adapter.align='rigth' in FILE is neither right, left", "did you mean 'right'?"),
        ("adapter.fused_modules=[]", "adapter.fused_modules=[] in FILE is empty", "a list with at least one item"),
        (
            "adapter.target_modules=[]",
            "adapter.target_modules=[] in FILE is empty",
            "with at least one item or all-linear",
        ),
        ("train.whole_model=yes", "'yes' in FILE is neither auto, true nor false", "use one of: auto, false, true"),
        ("task.target_language=", "task.target_language in FILE has no value", "set it to a text"),
        ("model.attention=", "model.attention in FILE has no value", "sdpa, eager or flash_attention_2"),
        ("evaluate.batch_size=big", "='big' in FILE is neither a whole number nor auto", "a whole number or auto"),
        ("evaluate.batch_size=0", "=0 in FILE is neither a number above 0 nor auto", "a number above 0 or auto"),
        (
            "evaluate.late=0",
            "evaluate.late=0 in FILE is neither a number above 0 nor fitted",
            "number above 0 or fitted",
        ),
        (
            "adapter.target_modules=q",
            "='q' in FILE is neither a list nor all-linear",
            "e.g. adapter.target_modules=[q]",
        ),
        ("adapter.target_modules=[1]", "adapter.target_modules.0=1 in FILE is not a text", "in quotes"),
        ("train=3", "train=3 in FILE is not a section", "indented"),
    ],
)
def test_of_a_run(run: Path, override: str, problem: str, fix: str) -> None:
    told = refusal(load_config, run, override)
    assert problem in told.problem and fix in told.fix, told


@pytest.mark.parametrize(
    ("override", "problem", "fix"),
    [
        ("ranks=some", "ranks='some' in FILE is neither a whole number nor all", "set ranks to a whole number or all"),
        ("together=x", "together='x' in FILE is neither a whole number nor auto", "a whole number or auto"),
        ("grid.languages=pl", "grid.languages='pl' in FILE is not a list", "e.g. grid.languages=[pl]"),
        ("grid.languages=[]", "grid.languages=[] in FILE is empty", "at least one item"),
        ("score=tset", "score='tset' in FILE is neither test nor validation", "did you mean 'test'?"),
    ],
)
def test_of_a_sweep(sweep: Path, override: str, problem: str, fix: str) -> None:
    told = refusal(read_sweep, sweep, override)
    assert problem in told.problem and fix in told.fix, told
