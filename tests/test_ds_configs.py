"""The shipped DeepSpeed configurations: DeepSpeed reads them, and they say what the design asks for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig, DtypeEnum

from flare_ds.config import Config
from flare_ds.exceptions import ConfigError
from flare_ds.runtime.ds_config import copy_size, read_ds_config, resolve_ds_config
from tests.small_models import small_model
from tests.test_config_conflicts import SETTINGS

DIRECTORY = Path(__file__).parents[1] / "ds_configs"
FILES = sorted(DIRECTORY.glob("*.json"))

# Every setting the trainer fills in, with numbers it could choose, on one rank.
RUN_TIME = {
    "train_batch_size": 4,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "stage3_max_reuse_distance": 1_200_000,
    "stage3_max_live_parameters": 2_500_000,
    "stage3_param_persistence_threshold": 8_193,
    "stage3_prefetch_bucket_size": 1_000_000,
    "zero_hpz_partition_size": 8,
}


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def filled(settings: dict[str, Any]) -> dict[str, Any]:
    """Replace each "auto", in sections too, as the trainer does."""
    return {
        name: filled(value) if isinstance(value, dict) else RUN_TIME[name] if value == "auto" else value
        for name, value in settings.items()
    }


def autos(settings: dict[str, Any]) -> set[str]:
    nested = [autos(value) for value in settings.values() if isinstance(value, dict)]
    return {name for name, value in settings.items() if value == "auto"}.union(*nested)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_deepspeed_reads_it_as_it_is_meant(file: Path) -> None:
    settings = read(file)
    several_nodes = {"zero_hpz_partition_size"}
    assert autos(settings) == set(RUN_TIME) - (set() if "hpz" in file.stem else several_nodes)
    config = DeepSpeedConfig(filled(settings))
    zero = config.zero_config
    assert zero.stage == 3
    assert config.communication_data_type is torch.float32
    assert DtypeEnum(config.grad_accum_dtype).value is torch.float32
    assert config.bfloat16_config.enabled == ("fp32" not in file.stem)
    assert zero.overlap_comm == ("cpu" not in file.stem)
    assert zero.zero_hpz_partition_size == (8 if "hpz" in file.stem else 1)
    assert (zero.max_reuse_distance, zero.max_live_parameters) == (1_200_000, 2_500_000)
    assert (zero.param_persistence_threshold, zero.prefetch_bucket_size) == (8_193, 1_000_000)
    assert not config.timers_config.enabled, "it waits for the GPU in every forward"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_setting_is_one_deepspeed_knows(file: Path) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    known = {field.alias or name for name, field in fields.items()}
    assert set(read(file)["zero_optimization"]) <= known
    top = {"bf16", "communication_data_type", "data_types", "timers", "zero_optimization"} | set(RUN_TIME)
    assert set(read(file)) <= top


def test_the_readme_explains_each_file_and_setting() -> None:
    readme = (DIRECTORY / "README.md").read_text(encoding="utf-8")
    for file in FILES:
        assert f"`{file.name}`" in readme
        for name, value in read(file).items():
            for leaf in value if isinstance(value, dict) else [name]:
                assert leaf in readme, leaf


def read_as(tmp_path: Path, content: str | dict[str, Any], dtype: str = "float32", **train: Any) -> dict[str, Any]:
    """A JSON read for a run."""
    path = tmp_path / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    given = {"deepspeed": str(path), "model": {"base": "m", "dtype": dtype}, "train": {"steps": 1, **train}}
    return read_ds_config(Config.model_validate(SETTINGS | given))


def changed(**zero: Any) -> dict[str, Any]:
    settings = read(DIRECTORY / "zero3_fp32_cpu.json")
    return settings | {"zero_optimization": settings["zero_optimization"] | zero}


@pytest.mark.parametrize(
    "settings",
    [
        changed(zero_hpz_partition_size=8, reduce_bucket_size="auto", stage3_prefetch_bucket_size=10),
        changed(zero_quantized_weights=False, offload_optimizer={"device": "none"}, offload_param=None),
        changed(offload_param={"device": "none", "pin_memory": True}) | {"compile": {"enabled": False}},
        changed() | {"prescale_gradients": False, "gradient_predivide_factor": 1.0},
        changed() | {"zero_force_ds_cpu_optimizer": False, "activation_checkpointing": {"cpu_checkpointing": False}},
        changed() | {"fp16": {"enabled": False}, "bf16": {"enabled": "auto"}, "steps_per_print": 10},
        changed() | {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 0.5},
        {"zero_optimization": {"stage": 3}},
    ],
    ids=str,
)
def test_what_may_be_changed(tmp_path: Path, settings: dict[str, Any]) -> None:
    found = read_as(tmp_path, settings, batch_size=4, micro_batch_size=2, max_grad_norm=0.5)
    zero = {key: value for key, value in found["zero_optimization"].items() if value != "auto"}
    assert DeepSpeedConfig(found | RUN_TIME | {"zero_optimization": zero}).zero_config.stage == 3


def test_the_precision_may_follow_the_model(tmp_path: Path) -> None:
    for dtype in ("bfloat16", "float32"):
        found = read_as(tmp_path, changed() | {"bf16": {"enabled": "auto"}}, dtype)
        assert found["bf16"]["enabled"] is (dtype == "bfloat16")


def test_gradients_are_float32_whatever_the_model_is(tmp_path: Path) -> None:
    """DeepSpeed's defaults beside bf16 would round each micro-batch's, and each rank's."""
    bare = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 3}}
    config = DeepSpeedConfig(read_as(tmp_path, bare, "bfloat16") | RUN_TIME)
    assert config.bfloat16_config.enabled and config.communication_data_type is torch.float32
    assert DtypeEnum(config.grad_accum_dtype).value is torch.float32


@pytest.mark.parametrize(("kind", "elements"), [("cpu", 5_000_000), ("cuda", 50_000_000)])
def test_a_bucket_of_auto_is_the_shipped_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, elements: int
) -> None:
    """DeepSpeed would drop the word, and take 500 M elements in float32: 2 GB."""
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(changed(reduce_bucket_size="auto")), encoding="utf-8")
    monkeypatch.setattr("flare_ds.runtime.ds_config.device", lambda: torch.device(kind))
    config = Config.model_validate(SETTINGS | {"deepspeed": str(path), "model": {"base": "m", "dtype": "float32"}})
    found = resolve_ds_config([config], small_model("llama")[0])["zero_optimization"]
    assert found["reduce_bucket_size"] == elements and "auto" not in found.values()
    shipped = read(DIRECTORY / f"zero3_fp32{'_cpu' if kind == 'cpu' else ''}.json")
    assert shipped["zero_optimization"]["reduce_bucket_size"] == elements


REFUSED: list[tuple[str | dict[str, Any], list[str]]] = [
    *(
        (changed(stage=stage), [f"zero_optimization.stage={stage!r}", '"stage": 3'])
        for stage in (0, 1, 2, "auto", None)
    ),
    (changed(offload_param={"device": "cpu"}), ["zero_optimization.offload_param", "shards", "more ranks"]),
    (changed(offload_optimizer={"device": "cpu"}), ["zero_optimization.offload_optimizer", "a few MB"]),
    (changed(cpu_offload=True), ["zero_optimization.cpu_offload"]),
    (changed(mics_shard_size=8), ["zero_optimization.mics_shard_size", "zero_hpz_partition_size"]),
    *(
        (changed(**{f"zero_quantized_{what}": True}), [f"zero_quantized_{what}"])
        for what in ("weights", "gradients", "nontrainable_weights")
    ),
    (changed(stage3_prefetch_buckets=1), ["stage3_prefetch_buckets", "did you mean 'stage3_prefetch_bucket_size'"]),
    (changed(reduce_bucket_size="big"), ["zero_optimization.reduce_bucket_size", "integer"]),
    (changed(sub_group_size="auto"), ['zero_optimization.sub_group_size="auto"', "nobody fills it in", "remove it"]),
    (changed() | {"steps_per_print": "auto"}, ['steps_per_print="auto"', "nobody fills it in"]),
    (changed(stage=2), ["train.whole_model=true"]),
    (changed(offload_param={"device": "cpu", "pin_memory": True}), ["zero_optimization.offload_param"]),
    (changed() | {"prescale_gradients": True}, ["prescale_gradients", "reduce_scatter"]),
    (changed() | {"gradient_predivide_factor": 2.0}, ["gradient_predivide_factor", "reduce_scatter"]),
    (changed() | {"compile": {"deepcompile": True}}, ["compile in", "nothing is compiled here"]),
    (changed(reduce_bucket_size=-1), ["zero_optimization.reduce_bucket_size", "greater"]),
    (changed() | {"optimizer": {"type": "AdamW", "params": {"lr": 0.5}}}, ["optimizer", "train.learning_rate"]),
    (changed() | {"scheduler": {"type": "WarmupLR"}}, ["scheduler", "train.schedule"]),
    (changed() | {"fp16": {"enabled": True}}, ["fp16", "model.dtype"]),
    (changed() | {"zero_optimisation": {}}, ["zero_optimisation", "did you mean 'zero_optimization'"]),
    (changed() | {"train_batch_size": 32}, ["train_batch_size=32", "train.batch_size=16", '"auto"']),
    (changed() | {"gradient_accumulation_steps": 4}, ["gradient_accumulation_steps=4"]),
    (changed() | {"gradient_clipping": 0.1}, ["gradient_clipping=0.1", "train.max_grad_norm=1.0"]),
    (changed() | {"bf16": {"enabled": True}}, ["model.dtype='float32', but bf16.enabled=true"]),
    (changed() | {"bf16": True}, ["bf16=True", "no section"]),
    (changed() | {"communication_data_type": "bf16"}, ["communication_data_type='bf16'", "float32 is filled in"]),
    (changed() | {"data_types": {"grad_accum_dtype": "bf16"}}, ["data_types.grad_accum_dtype='bf16'"]),
    (changed() | {"data_types": {"buffer_dtype": "bf16"}}, ["data_types.buffer_dtype='bf16'"]),
    (changed() | {"bf16": {"bf16_master_weights_and_grads": True}}, ["bf16.bf16_master_weights_and_grads=True"]),
    (changed() | {"zero_optimization": []}, ["zero_optimization=[]", "no section"]),
    (changed(stage=2, cpu_offload=True) | {"scheduler": {}}, ["3 problems", "scheduler", "cpu_offload", "stage=2"]),
    ({}, ["zero_optimization.stage=None"]),
    ("[1]", ["holds no settings", "[1]"]),
    ('{"zero_optimization": {"stage": 3, "stage": 2}}', ["'stage' occurs twice"]),
    ('{"gradient_clipping": NaN}', ["NaN"]),
    ('{\n "stage": 3, // zero\n}', ["line 2", "no comments"]),
    ("[" * 100_000, ["nested too deeply"]),
    ("", ["not valid JSON"]),
]


@pytest.mark.parametrize(("content", "named"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_cannot_work_is_refused_by_name(tmp_path: Path, content: str | dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        read_as(tmp_path, content)
    for part in [*named, "ds.json"]:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("wanted", "hosts", "expected"),
    [
        ("auto", "a", 1),
        ("auto", "aaaa", 1),
        ("auto", "aabb", 2),
        ("auto", "aaaabbbbcccc", 4),
        ("auto", "abc", 1),
        (2, "aaaa", 2),
        (8, "aaaa", 8),
    ],
)
def test_a_copy_of_the_base_for_each_host_where_there_are_several(wanted: Any, hosts: str, expected: int) -> None:
    assert copy_size(wanted, list(hosts), "ds.json") == expected


@pytest.mark.parametrize(("wanted", "hosts"), [("auto", "aab"), ("auto", "abab"), (3, "aabb")])
def test_ranks_that_cannot_be_shared_out_are_refused(wanted: Any, hosts: str) -> None:
    with pytest.raises(ConfigError, match=r"zero_hpz_partition_size=.* in ds.json") as refused:
        copy_size(wanted, list(hosts), "ds.json")
    assert "zero3_bf16.json" not in refused.value.fix, "a file in the working directory, where there is none"


def test_encodings(tmp_path: Path) -> None:
    text = json.dumps(changed())
    path = tmp_path / "utf16.json"
    path.write_text(text, encoding="utf-16")
    config = Config.model_validate(SETTINGS | {"deepspeed": str(path), "model": {"base": "m", "dtype": "float32"}})
    assert read_ds_config(config) == changed()
    path.write_bytes(text.encode() + b'"\xdf"')
    with pytest.raises(ConfigError, match=r"utf16\.json.*byte 0xdf"):
        read_ds_config(config)
