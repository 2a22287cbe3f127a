"""Adapter files of every kind: loaded elsewhere they compute the same, and what does not fit is refused by name."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flare_ds.adapters.files import check_settings, load_adapter, saved_settings
from flare_ds.config import Config
from flare_ds.exceptions import CheckpointError
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.runtime.engine import trainable_parameters
from tests.adapters.adapters import KINDS, PLAIN, a_batch, make_settings, save_trained, says, trained_model
from tests.distributed import run_ranks
from tests.toy import write_config

SHARDED = ("flare_full", "flare_mt", "x_mixup")
Trained = dict[str, tuple[Config, TwoStreamModel, Path]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root, found = tmp_path_factory.mktemp("adapters"), {}
    for kind in KINDS:
        settings = make_settings(root, kind)
        write_config(settings)
        config = Config.model_validate(settings)
        model = trained_model(config)
        found[kind] = config, model, save_trained(config, model)
    return found


def yaml_of(trained: Trained, kind: str) -> Path:
    return Path(trained[kind][0].run_dir).with_suffix(".yaml")


def test_a_fresh_process_says_the_same_bit_for_bit(trained: Trained) -> None:
    run_ranks(["tests.adapters.load_worker", "alone", *(str(yaml_of(trained, kind)) for kind in KINDS)], 1)
    for kind, (config, model, _) in trained.items():
        (logits,) = load_file(yaml_of(trained, kind).with_suffix(".alone")).values()
        assert torch.equal(logits, says(model, config)), kind


def test_two_sharded_ranks_take_it_and_would_save_the_same(trained: Trained) -> None:
    run_ranks(["tests.adapters.load_worker", "sharded", *(str(yaml_of(trained, kind)) for kind in SHARDED)], 2)
    for kind in SHARDED:
        config, model, directory = trained[kind]
        found, saved = load_file(yaml_of(trained, kind).with_suffix(".sharded")), read(directory)
        torch.testing.assert_close(found.pop("logits"), says(model, config), atol=1e-5, rtol=1e-5)
        assert found.keys() == saved.keys()
        assert all(torch.equal(found[key], saved[key]) for key in saved), kind


def read(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "adapter_model.safetensors")


def test_keys_are_pefts_and_all_is_fp32(trained: Trained) -> None:
    keys = {kind: set(read(directory)) for kind, (_, _, directory) in trained.items()}
    layers = [f"base_model.model.model.layers.{layer}" for layer in range(2)]
    modules = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    plain = {f"{layer}.{module}.lora_{side}.weight" for layer in layers for module in modules for side in "AB"}
    head = {"base_model.model.lm_head.weight"}
    parts = ["query.weight", "query.bias", "key.weight", "value.weight", "value.bias"]
    fused = [f"{layer}.self_attn.{name}_proj.lora_fusion" for layer in layers for name in "qv"]
    extra = {f"{module}.function.{part}" for module in fused for part in parts}
    assert keys["lora"] == keys["rslora"] == keys["flare"] == plain
    extra |= {f"{module}.{part}" for module in fused for part in ("source_down.weight", "source_scores_S")}
    assert keys["lora_head"] == keys["lora_words"] == plain | head
    assert keys["flare_words"] == plain | head | {f"{module}.function.opening_R" for module in fused}
    assert keys["flare_full"] == plain | head | extra
    assert keys["flare_mt"] == plain | {"projection.weight", "projection.bias"}
    maps = {f"mixing.{name}.{part}.weight" for name in ("query", "key", "value") for part in ("down", "up")}
    assert keys["x_mixup"] == plain | maps | {"mixing.gate.weight", "mixing.gate.bias"}
    assert all(tensor.dtype == torch.float32 for *_, where in trained.values() for tensor in read(where).values())


PEFT_ALONE = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, inputs, *adapters = sys.argv[1:]
inputs, found = torch.load(inputs), {}
for adapter in adapters:
    try:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        with torch.no_grad():
            found[adapter] = model(**inputs).logits
    except Exception as error:
        found[adapter] = repr(error)
assert not any(name.partition(".")[0] == "flare_ds" for name in sys.modules)
torch.save(found, sys.argv[2] + ".out")
"""


def test_peft_alone_says_the_same_or_refuses(trained: Trained, tmp_path: Path) -> None:
    plain = trained["lora_head"][0]
    batch = a_batch(plain)
    inputs = {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "position_ids")}
    torch.save(inputs, tmp_path / "inputs")
    adapters = {kind: str(directory) for kind, (_, _, directory) in trained.items()}
    command = [sys.executable, "-c", PEFT_ALONE, plain.model.base, str(tmp_path / "inputs"), *adapters.values()]
    subprocess.run(command, check=True, cwd=tmp_path, env={"PATH": "", "HF_HUB_OFFLINE": "1"})
    found = torch.load(tmp_path / "inputs.out")
    for kind, directory in adapters.items():
        if kind not in PLAIN:
            assert "FLARE_DS" in found[directory], kind
            continue
        config = trained[kind][0]
        logits_BNK = says(trained[kind][1], config)
        expected_BLK = found[directory][:, batch.answer_columns_N]
        if kind != "lora_head":
            batch_words = a_batch(config)
            expected_BLK = found[directory][:, batch_words.prompt_columns - 1, None][..., [5, 9, 30]]
        torch.testing.assert_close(logits_BNK, expected_BLK, atol=1e-5, rtol=1e-5)


Change = Callable[[dict[str, Tensor]], object]
DOWN = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
MISFITS: dict[str, tuple[Change, str]] = {
    "missing": (lambda w: w.pop(DOWN), rf"of 28 matrices 27 match; 1 missing \(first '{DOWN}'\)"),
    "extra": (lambda w: w.update(more=torch.ones(1)), r"28 match; 1 unexpected \(first 'more'\)"),
    "misnamed": (
        lambda w: w.update({DOWN.replace("model.model.", ""): w.pop(DOWN)}),
        "27 match; 1 missing .*, 1 unexpected",
    ),
    "none matches": (lambda w: [w.update({"x." + key: w.pop(key)}) for key in list(w)], "of 28 matrices 0 match"),
    "rank": (
        lambda w: w.update({DOWN: w[DOWN][:2].contiguous()}),
        r"has shape \(2, 16\), where the model has \(4, 16\)",
    ),
    "transposed": (lambda w: w.update({DOWN: w[DOWN].T.contiguous()}), r"has shape \(16, 4\), where the model has \(4"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_weights_that_do_not_fit_exactly_are_refused(trained: Trained, tmp_path: Path, case: str) -> None:
    change, message = MISFITS[case]
    weights = read(trained["flare"][2])
    change(weights)
    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=message) as refused:
        load_adapter(tmp_path, trainable_parameters(trained["flare"][1]))
    assert "trained with" in refused.value.fix


def test_damaged_and_absent_files_are_refused(trained: Trained, tmp_path: Path) -> None:
    config, model, directory = trained["flare"]
    parameters = trainable_parameters(model)
    with pytest.raises(CheckpointError, match=r"cannot read .*adapter_model"):
        load_adapter(tmp_path, parameters)
    with pytest.raises(CheckpointError, match=r"cannot read .*adapter_config"):
        check_settings(tmp_path, config)
    weights = (directory / "adapter_model.safetensors").read_bytes()
    for damaged in (weights[:-1], weights[:100], b"", b"x" * len(weights)):
        (tmp_path / "adapter_model.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"cannot read .*adapter_model"):
            load_adapter(tmp_path, parameters)
    for damaged in (b"", b"{", b"[]", b"{}", b"\xff", b'{"flare_ds": 3}'):
        (tmp_path / "adapter_config.json").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot read"):
            check_settings(tmp_path, config)


def changed(config: Config, name: str, value: object) -> Config:
    section, _, key = name.rpartition(".")
    values = config.model_dump()
    (values[section] if section else values)[key] = value
    return Config.model_validate(values)


DIFFERENT = [
    ("lora", "adapter.r", 8),
    ("lora", "adapter.alpha", 9.0),
    ("rslora", "adapter.rslora", False),
    ("lora", "adapter.train_head", True),
    ("lora_head", "adapter.train_head", False),
    ("lora_head", "train.objective", "labels"),
    ("lora_words", "train.objective", "vocabulary"),
    ("flare", "adapter.alpha", 9.0),
    ("flare", "adapter.rslora", True),
    ("flare", "adapter.fused_modules", ["q_proj"]),
    ("flare", "adapter.fusion", "add"),
    ("flare_full", "adapter.fusion_heads", 4),
    ("flare", "adapter.pairing", "module"),
    ("flare", "adapter.source_norm", False),
    ("flare", "adapter.align", "stretch"),
    ("flare", "adapter.span", "full"),
    ("flare_full", "adapter.source_weights", "mean"),
    ("flare_mt", "source.mt_language", "slk_Latn"),
    ("flare_mt", "source.mt_encoder", "facebook/another"),
    ("flare", "task.source_language", "fr"),
    ("flare_full", "task.extra_source_languages", ["fr"]),
    ("flare_words", "train.objective", "vocabulary"),
    ("x_mixup", "adapter.alpha", 9.0),
    ("x_mixup", "mixup.layer", 1),
    ("x_mixup", "mixup.heads", 2),
    ("x_mixup", "mixup.ratio", 0.25),
    ("x_mixup", "task.source_language", "fr"),
]


@pytest.mark.parametrize(("kind", "name", "value"), DIFFERENT)
def test_other_settings_are_refused_by_name(trained: Trained, kind: str, name: str, value: object) -> None:
    config, _, directory = trained[kind]
    with pytest.raises(CheckpointError, match=rf"was trained with {name}=") as refused:
        check_settings(directory, changed(config, name, value))
    assert refused.value.fix.startswith(f"set {name}=")


SAME = [
    ("lora", "adapter.dropout", 0.5),
    ("lora", "train.objective", "vocabulary"),
    ("lora", "adapter.align", "left"),
    ("flare", "adapter.dropout", 0.5),
    ("flare", "adapter.target_modules", "all-linear"),
    ("flare", "source.provider", "cached"),
    ("flare", "source.mt_language", "slk_Latn"),
    ("flare", "train.objective", "vocabulary"),
    ("flare_mt", "source.mt_encoder", "/moved/to/mt"),
    ("flare_full", "model.dtype", "bfloat16"),
    ("x_mixup", "mixup.kl_weight", 0.0),
    ("x_mixup", "adapter.span", "full"),
    ("x_mixup", "task.extra_source_languages", ["fr"]),
]


@pytest.mark.parametrize(("kind", "name", "value"), SAME)
def test_settings_that_change_nothing_may_differ(trained: Trained, kind: str, name: str, value: object) -> None:
    config, _, directory = trained[kind]
    check_settings(directory, changed(config, name, value))


def test_weights_of_sources_that_an_earlier_version_learned_weigh_the_same(trained: Trained, tmp_path: Path) -> None:
    """It kept their logits themselves, under another name."""
    _, model, directory = trained["flare_full"]
    weights = read(directory)
    earlier = {key.replace("source_scores_S", "source_logits_S"): tensor for key, tensor in weights.items()}
    earlier |= {key: 32 * tensor for key, tensor in earlier.items() if key.endswith("source_logits_S")}
    assert len(earlier.keys() - weights.keys()) == 4
    save_file(earlier, tmp_path / "adapter_model.safetensors")
    found = load_adapter(tmp_path, trainable_parameters(model))
    assert all(torch.equal(tensor, model.get_parameter(name)) for name, tensor in found.items())


def test_another_method_is_refused(trained: Trained) -> None:
    with pytest.raises(CheckpointError, match="holds an adapter of flare, not of method=lora"):
        check_settings(trained["flare"][2], trained["lora"][0])
    with pytest.raises(CheckpointError, match="holds an adapter of x_mixup, not of method=flare"):
        check_settings(trained["x_mixup"][2], trained["flare"][0])
    for kind in ("lora", "lora_words"):
        with pytest.raises(CheckpointError, match="holds an adapter of plain LoRA, not of method=flare"):
            check_settings(trained[kind][2], trained["flare"][0])


def test_an_adapter_of_an_unknown_method_is_another_versions_and_nothing_to_delete(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"flare_ds": {"method": "flare_2"}}))
    with pytest.raises(CheckpointError, match=r"is of method 'flare_2'.*\n  fix: use the version, or the fork") as told:
        saved_settings(tmp_path)
    assert "delete" not in str(told.value)


def test_settings_an_older_file_does_not_tell_are_the_defaults(trained: Trained, tmp_path: Path) -> None:
    config, _, directory = trained["flare"]
    written = json.loads((directory / "adapter_config.json").read_text())
    early = {"r": 4, "alpha": 8.0, "fusion": "add_relu", "fused_modules": ["q_proj", "v_proj"], "align": "right"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(written | {"flare_ds": early}))
    check_settings(tmp_path, config)
    for name, value in (("adapter.align", "left"), ("adapter.span", "full"), ("task.source_language", "fr")):
        with pytest.raises(CheckpointError, match=rf"was trained with {name}="):
            check_settings(tmp_path, changed(config, name, value))


def test_saving_again_replaces_the_adapter(trained: Trained, tmp_path: Path) -> None:
    config, model, directory = trained["flare"]
    moved = changed(config, "run_dir", str(tmp_path))
    shutil.copytree(directory, tmp_path / "adapter")
    before = read(tmp_path / "adapter")
    tensors = trainable_parameters(model)
    name = next(iter(tensors))
    with torch.no_grad():
        tensors[name] += 1
        save_trained(moved, model)
        tensors[name] -= 1
    after = read(tmp_path / "adapter")
    assert [key for key in before if not torch.equal(before[key], after[key])] == [
        name.removeprefix("model.").replace(".default", "")
    ]
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
