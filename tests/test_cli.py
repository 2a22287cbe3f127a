"""The command line: every bad input of the main path ends in one message with the fix, and no traceback."""

import os
import re
from pathlib import Path

import pytest

from flare_ds.cli import main
from tests.distributed import run_ranks
from tests.toy import toy_settings, write_config


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a verb that must fail; its one message."""
    assert main(list(arguments)) == 1
    captured = capsys.readouterr()
    message = captured.err[captured.err.index("flare-ds: ") :]
    assert message.count("fix: ") == 1 and "Traceback" not in captured.err
    return message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.lerning_rate=0.1", "unknown setting 'train.lerning_rate'.*did you mean 'learning_rate'"),
        ("train.steps=0", "train.steps=0"),
        ("train.steps=many", "train.steps='many'"),
        ("adapter.pairing=outptu", "adapter.pairing='outptu'"),
        ("adapter.target_modules=3", "adapter.target_modules=3"),
        ("task.target_language=en", "task.target_language='en' equals task.source_language"),
        ("task.target_language=polish", "no language 'polish'"),
        ("task.name=multemo", "unknown task 'multemo'.*did you mean 'multiemo'"),
        ("task.data_dir=/nowhere", "/nowhere.*fetch data multiemo"),
        ("model.base=/nowhere", "model.base='/nowhere' is not a directory"),
        ("train", "cannot read the override 'train'"),
    ],
)
def test_a_wrong_setting(root: Path, capsys: pytest.CaptureFixture[str], override: str, expected: str) -> None:
    config = write_config(toy_settings(root))
    message = refused(capsys, "prepare", str(config), override).replace("\n", " ")
    assert re.search(expected, message), message


def test_a_missing_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no.yaml" in refused(capsys, "prepare", "no.yaml")


def test_a_config_that_is_not_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("method: [flare")
    assert "not valid YAML" in refused(capsys, "prepare", str(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    config = write_config(toy_settings(root))
    assert "may write" in refused(capsys, "prepare", str(config), f"cache_dir={tmp_path}/cache")


TRAIN_ERRORS = [
    (["deepspeed=ds_configs/zero3_cpu.json"], "model.dtype='float32', but bf16.enabled=true"),
    (["deepspeed=nowhere.json"], "cannot read deepspeed='nowhere.json'"),
    (["adapter.fused_modules=[qproj]"], "did you mean 'q_proj'"),
    (["adapter.fusion=add_rleu"], "did you mean 'add_relu'"),
    (["method=zero_shot"], "method=zero_shot trains nothing"),
    (["train.micro_batch_size=99999999", "train.batch_size=99999999"], "train.micro_batch_size=99999999 needs about"),
]


@pytest.mark.parametrize(("overrides", "expected"), TRAIN_ERRORS, ids=lambda value: str(value)[:30])
def test_what_training_refuses_on_every_rank(root: Path, overrides: list[str], expected: str) -> None:
    config = write_config(toy_settings(root, name="refused"))
    outputs = run_ranks(["flare_ds", "train", str(config), *overrides], 2, expect=1)
    assert expected in outputs[0] and "fix: " in outputs[0], outputs[0][-2000:]
    assert "Traceback" not in "".join(outputs)
    assert "flare-ds:" not in outputs[1], "one message, from rank 0"


def test_a_lock_left_by_a_killed_compilation_is_no_obstacle(root: Path, tmp_path: Path) -> None:
    """Torch would wait for it for ever: found when a run killed as it started made the next one hang."""
    config = str(write_config(toy_settings(root, name="locked", steps=1)))
    extensions = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    run_ranks(["flare_ds", "train", config], 1, **extensions)
    (built,) = tmp_path.glob("**/deepspeed_shm_comm")
    (built / "lock").touch()
    run_ranks(["flare_ds", "train", config, f"run_dir={tmp_path}/again"], 2, timeout=300, **extensions)


def test_evaluating_a_run_without_an_adapter(root: Path) -> None:
    config = write_config(toy_settings(root, name="untrained"))
    (output,) = run_ranks(["flare_ds", "evaluate", str(config)], 1, expect=1)
    assert "adapter_config.json" in output and "fix: " in output and "Traceback" not in output


def test_evaluating_with_other_fusion_settings(root: Path) -> None:
    config = write_config(toy_settings(root, name="fused", steps=1))
    run_ranks(["flare_ds", "train", str(config)], 1)
    (output,) = run_ranks(["flare_ds", "evaluate", str(config), "adapter.align=left"], 1, expect=1)
    assert "adapter.align='right'" in output
    (output,) = run_ranks(["flare_ds", "evaluate", str(config), "method=lora"], 1, expect=1)
    assert "a fusion adapter" in output
