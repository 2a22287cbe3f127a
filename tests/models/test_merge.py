"""The merged model computes what base and adapter compute, made in one file's memory; what does not fit is refused."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from flare_ds.adapters.files import WEIGHTS, saved_settings
from flare_ds.config import Config
from flare_ds.exceptions import CheckpointError, ConfigError
from flare_ds.models.loading import load_base
from flare_ds.models.merge import check_mergeable, merge_run
from flare_ds.models.two_stream import TwoStreamModel
from tests.adapters.adapters import a_batch, make_settings, save_trained, says, tied_model, trained_model
from tests.by_hand import LABELS
from tests.distributed import run_ranks
from tests.models.architectures import ARCHITECTURES, small_base, writes
from tests.runs.test_hub_names import FIRST, NAME, SECOND, write_cache
from tests.small_models import COMMON, small_model
from tests.toy import write_config

HEAD = "lm_head.weight"


def make_base(name: str) -> PreTrainedModel:
    """One with an output matrix of its own (llama); gemma2 and tied share theirs with the embedding."""
    return tied_model() if name == "tied" else small_model(name, layers=2)[0]


def make_run(root: Path, kind: str, *, base: str = "llama", shard: str = "1GB", dtype: str = "float32") -> Config:
    """A trained run of that kind on a base saved in files of that size."""
    model = make_base(base).to(getattr(torch, dtype))
    model.save_pretrained(root / "model", max_shard_size=shard)
    settings = make_settings(root, kind)
    settings["model"] |= {"dtype": dtype, "attention": "eager" if base == "gemma2" else "sdpa"}
    write_config(settings)
    return Config.model_validate(settings)


def read(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def check_index(directory: Path) -> None:
    """The index names each weight's file, all files that are there, and their size."""
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = {file.name: load_file(file) for file in directory.glob("*.safetensors")}
    assert len(files) > 4
    assert index["weight_map"] == {name: file for file, tensors in files.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(t.nbytes for tensors in files.values() for t in tensors.values())


def check_says_the_same(merged: PreTrainedModel, model: TwoStreamModel, config: Config) -> None:
    batch = a_batch(config)
    inputs = {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "position_ids")}
    with torch.no_grad():
        logits_BNK = merged(**inputs).logits[:, batch.answer_columns_N]
    if config.train.objective == "labels":
        logits_BNK = logits_BNK[..., list(LABELS.values())]
    torch.testing.assert_close(logits_BNK, says(model, config), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shard", ["1GB", "5KB"])
@pytest.mark.parametrize("base", ["llama", "tied", "gemma2"])
@pytest.mark.parametrize("kind", ["lora", "rslora", "lora_head", "lora_words"])
def test_the_merged_model_says_what_base_and_adapter_say(tmp_path: Path, kind: str, base: str, shard: str) -> None:
    config = make_run(tmp_path, kind, base=base, shard=shard)
    model = trained_model(config)
    save_trained(config, model)
    merge_run(config, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation=config.model.attention)
    check_says_the_same(merged, model, config)
    before, after = read(tmp_path / "model"), read(tmp_path / "merged")
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert merged.config.tie_word_embeddings == (base != "llama" and not config.adapter.train_head)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if "_proj" in name} == before.keys() - same - {HEAD}
    if shard == "5KB":
        check_index(tmp_path / "merged")
    if kind == "lora_words":
        others = [token for token in range(64) if token not in LABELS.values()]
        torch.testing.assert_close(after[HEAD][others], make_base(base).get_output_embeddings().weight[others])


def run_on(root: Path, name: str) -> Config:
    """A run that trains the head, too, on the architecture's base at root/model."""
    attention = ARCHITECTURES[name].attentions[0]
    if not (root / "model").exists():
        small_base(name, attention).save_pretrained(root / "model")
    settings = make_settings(root, "lora_head")
    settings["model"] |= {"attention": attention}
    settings["adapter"] |= {"target_modules": [*ARCHITECTURES[name].fused, *writes(name)]}
    write_config(settings)
    return Config.model_validate(settings)


def check_merges(config: Config, output: Path) -> None:
    """The merged base says what base and adapter say, and its files have the names that the base's have."""
    check_mergeable(config)
    model = trained_model(config)
    save_trained(config, model)
    merge_run(config, output)
    merged = AutoModelForCausalLM.from_pretrained(output, attn_implementation=config.model.attention)
    with torch.no_grad():
        merged_weights, peft_model = merged.state_dict(), model.peft_model.merge_and_unload()
    expected = peft_model.state_dict()
    assert merged_weights.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(merged_weights[name], weight, atol=1e-5, rtol=1e-5, msg=name)
    before, after = read(Path(config.model.base)), read(output)
    assert after.keys() - before.keys() <= {HEAD} and not before.keys() - after.keys()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_merges_whatever_its_files_call_the_weights(tmp_path: Path, name: str) -> None:
    check_merges(run_on(tmp_path, name), tmp_path / "merged")


def test_files_without_the_prefix_that_the_model_has(tmp_path: Path) -> None:
    """As those of BLOOM lie on the hub."""
    small_base("bloom", "eager").save_pretrained(tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    weights = {name.removeprefix("transformer."): weight for name, weight in load_file(file).items()}
    assert "h.0.self_attention.dense.weight" in weights
    save_file(weights, file, metadata={"format": "pt"})
    check_merges(run_on(tmp_path, "bloom"), tmp_path / "merged")


def test_a_run_on_a_hub_base_is_merged_into_the_commit_it_began_with(tmp_path: Path) -> None:
    config = make_run(tmp_path, "lora")
    save_trained(config, trained_model(config))
    merge_run(config, tmp_path / "expected")
    make_base("tied").save_pretrained(tmp_path / "other")
    write_cache(tmp_path / "home", {FIRST: tmp_path / "model", SECOND: tmp_path / "other"}, main=SECOND)
    settings = make_settings(tmp_path, "lora")
    settings["model"] |= {"base": NAME}
    run = Path(config.run_dir)
    for record in ("cache.json", "training.json"):
        (run / record).write_text("{}")
    (run / "base.json").write_text(json.dumps({"name": NAME, "fingerprint": FIRST}))
    save_file(load_file(run / "adapter" / WEIGHTS), run / "adapter" / WEIGHTS)  # as one that does not tell its base
    words = ["merge", str(write_config(settings)), "--output", str(tmp_path / "merged")]
    run_ranks(["flare_ds", *words], 1, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
    merged, expected = read(tmp_path / "merged"), read(tmp_path / "expected")
    assert merged.keys() == expected.keys() and all(torch.equal(merged[name], expected[name]) for name in expected)


def test_the_head_of_words_that_share_tokens_goes_to_the_rows_of_those_that_tell_them_apart(tmp_path: Path) -> None:
    words = {"very good": [5, 6, 7], "very bad": [5, 6, 8], "poor": [9]}
    config = make_run(tmp_path, "lora_words")
    model = trained_model(config, words)
    directory = save_trained(config, model, words)
    assert saved_settings(directory)["label_ids"] == words
    merge_run(config, tmp_path / "merged")
    before, after = read(tmp_path / "model")[HEAD], read(tmp_path / "merged")[HEAD]
    assert torch.equal(after[[5, 9, 7, 8]], model.base.get_output_embeddings().weight)
    assert (before != after).any(1).nonzero().flatten().tolist() == [5, 7, 8, 9]


def test_sums_are_rounded_once(tmp_path: Path) -> None:
    config = make_run(tmp_path, "rslora", dtype="bfloat16")
    adapter = load_file(save_trained(config, trained_model(config)) / "adapter_model.safetensors")
    merge_run(config, tmp_path / "merged")
    before, after = read(tmp_path / "model"), read(tmp_path / "merged")
    name = "model.layers.1.mlp.down_proj"
    up, down = (adapter[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "BA")
    expected = before[f"{name}.weight"].double() + 8 / math.sqrt(4) * up @ down
    assert after[f"{name}.weight"].dtype == torch.bfloat16
    half_a_step = expected.abs() * 2.0**-8
    assert ((after[f"{name}.weight"].double() - expected).abs() <= half_a_step * 1.001).all()


Change = Callable[[dict[str, Tensor]], object]
Q = "base_model.model.model.layers.1.self_attn.q_proj"
OTHER = Q.replace("layers.1", "layers.9")
CHANGES: dict[str, tuple[Change, str]] = {
    "no B": (lambda w: w.pop(Q + ".lora_B.weight"), r"1 matrices of .* cannot be merged, first .*q_proj\.lora_A"),
    "no A": (lambda w: w.pop(Q + ".lora_A.weight"), r"1 matrices of .* cannot be merged, first .*q_proj\.lora_B"),
    "unknown": (lambda w: w.update({Q + ".lora_magnitude_vector": torch.ones(2)}), r"first .*lora_magnitude_vector"),
    "a head": (lambda w: w.update({f"base_model.model.{HEAD}": torch.ones(64, 16)}), r"1 matrices .*first .*lm_head"),
    "elsewhere": (
        lambda w: w.update({OTHER + side: w.pop(Q + side) for side in (".lora_A.weight", ".lora_B.weight")}),
        r"1 adapter matrices match no weight of the base, first .*layers\.9",
    ),
    "wider": (lambda w: w.update({Q + ".lora_A.weight": torch.ones(4, 20)}), r"does not fit 'model.*q_proj.weight'"),
    "higher": (lambda w: w.update({Q + ".lora_B.weight": torch.ones(36, 4)}), r"does not fit 'model.*q_proj.weight'"),
    "rank": (lambda w: w.update({Q + ".lora_A.weight": torch.ones(5, 16)}), r"does not fit 'model.*q_proj.weight'"),
}


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = make_run(tmp_path_factory.mktemp("lora"), "lora", shard="5KB")
    save_trained(config, trained_model(config))
    return config


@pytest.mark.parametrize("case", CHANGES)
def test_every_matrix_is_used_once_or_nothing_is_written(lora: Config, tmp_path: Path, case: str) -> None:
    change, message = CHANGES[case]
    path = Path(lora.run_dir) / "adapter/adapter_model.safetensors"
    whole = path.read_bytes()
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    try:
        with pytest.raises(CheckpointError, match=message):
            merge_run(lora, tmp_path / "merged")
    finally:
        path.write_bytes(whole)
    assert not list(tmp_path.iterdir())


def test_only_a_task_adapter_of_these_settings_merges(lora: Config, tmp_path: Path) -> None:
    for method in ("flare", "x_mixup"):
        fused = lora.model_copy(update={"method": method})
        with pytest.raises(CheckpointError, match="depends on the source text"):
            merge_run(fused, tmp_path / "merged")
        save_trained(fused.model_copy(update={"run_dir": str(tmp_path / method)}), trained_model(fused))
        with pytest.raises(CheckpointError, match=f"holds an adapter of {method}, not of method=lora"):
            merge_run(lora.model_copy(update={"run_dir": str(tmp_path / method)}), tmp_path / "merged")
    other = lora.model_copy(update={"adapter": lora.adapter.model_copy(update={"rslora": True})})
    with pytest.raises(CheckpointError, match=r"adapter\.rslora=False"):
        merge_run(other, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_run_without_an_adapter_or_base(lora: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*adapter_config"):
        merge_run(lora.model_copy(update={"run_dir": str(tmp_path)}), tmp_path / "merged")
    model = lora.model.model_copy(update={"base": str(tmp_path / "no")})
    with pytest.raises(ConfigError, match="is not a directory"):
        merge_run(lora.model_copy(update={"model": model}), tmp_path / "merged")


@pytest.mark.parametrize("kind", ["lora", "lora_head"])
def test_a_weight_that_no_file_has_is_missed_before_training(tmp_path: Path, kind: str) -> None:
    config = make_run(tmp_path, kind)
    check_mergeable(config)
    file = tmp_path / "model/model.safetensors"
    weights = load_file(file)
    gone = HEAD if kind == "lora_head" else "model.layers.1.self_attn.v_proj.weight"
    kept = {name: weight for name, weight in weights.items() if name not in (gone, "model.embed_tokens.weight")}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"lack 1 weights.*: '{re.escape(gone)}' is the first"):
        check_mergeable(config)


def test_a_damaged_base(lora: Config, tmp_path: Path) -> None:
    file = sorted(Path(lora.model.base).glob("*.safetensors"))[1]
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    try:
        with pytest.raises(CheckpointError, match="its contents differ"):
            merge_run(lora, tmp_path / "merged")
    finally:
        file.write_bytes(whole)


def test_other_weights_of_the_base_are_left_behind(lora: Config, tmp_path: Path) -> None:
    base = Path(lora.model.base)
    for name in ("pytorch_model.bin", "consolidated.safetensors", "tokenizer_config.json"):
        (base / name).write_bytes(b"{}")
    merge_run(lora, tmp_path / "merged")
    names = {file.name for file in (tmp_path / "merged").iterdir()}
    assert {"tokenizer_config.json", "config.json", "merged_from.json"} < names
    assert not {"pytorch_model.bin", "consolidated.safetensors"} & names


@pytest.mark.parametrize("kind", ["gone", "both"])
def test_the_weights_merged_are_those_that_training_read(tmp_path: Path, kind: str) -> None:
    """Beside an index of older shards lies a file with all weights: transformers reads that, and so did the run."""
    config = make_run(tmp_path, "lora", shard="5KB")
    base = Path(config.model.base)
    if kind == "gone":
        for shard in base.glob("*.safetensors"):
            shard.unlink()
    model = make_base("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    model.save_pretrained(tmp_path / "later")
    (base / "model.safetensors").write_bytes((tmp_path / "later/model.safetensors").read_bytes())
    trained = trained_model(config)
    save_trained(config, trained)
    merge_run(config, tmp_path / "merged")
    assert [file.name for file in (tmp_path / "merged").glob("model*")] == ["model.safetensors"]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    check_says_the_same(merged, trained, config)


def test_an_index_whose_files_are_gone(tmp_path: Path) -> None:
    config = make_run(tmp_path, "lora", shard="5KB")
    save_trained(config, trained_model(config))
    first = min(Path(config.model.base).glob("*.safetensors"))
    first.unlink()
    for refused in (lambda: merge_run(config, tmp_path / "merged"), lambda: load_base(config.model)):
        with pytest.raises(
            CheckpointError, match=rf"names 1 files that are not there, the first of them {first.name}\n"
        ):
            refused()
    assert not (tmp_path / "merged").exists()


def test_all_chat_templates_come_along(tmp_path: Path) -> None:
    config = make_run(tmp_path, "lora")
    save_trained(config, trained_model(config))
    for name in ("chat_template.jinja", "additional_chat_templates/tool_use.jinja"):
        path = Path(config.model.base) / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{{ messages }}")
    (Path(config.model.base) / "checkpoints").mkdir()
    merge_run(config, tmp_path / "merged")
    assert (tmp_path / "merged/additional_chat_templates/tool_use.jinja").read_text() == "{{ messages }}"
    assert (tmp_path / "merged/chat_template.jinja").exists() and not (tmp_path / "merged/checkpoints").exists()


def test_one_file_in_memory_at_a_time(lora: Config, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"num_hidden_layers": 12, "hidden_size": 512, "intermediate_size": 1536, "head_dim": 64}
    shape |= {"num_attention_heads": 8, "num_key_value_heads": 8}
    LlamaForCausalLM(LlamaConfig(**COMMON | shape)).save_pretrained(tmp_path / "model", max_shard_size="15MB")
    config = make_run_on(tmp_path)
    shards = [file.stat().st_size for file in (tmp_path / "model").glob("*.safetensors")]
    first = Path(lora.run_dir).with_suffix(".yaml")
    arguments = [str(first), str(tmp_path / "lora.yaml"), str(tmp_path / "merged")]
    # Real weights are too large for malloc's pools, which would keep the room of these for later.
    (output,) = run_ranks(["tests.models.merge_worker", *arguments], 1, MALLOC_MMAP_THRESHOLD_=str(2**20))
    rise = int(re.findall(r"rise (-?\d+)", output)[-1])
    total, largest = sum(shards) / 1e6, max(shards) / 1e6
    print(f"{total:.0f} MB in {len(shards)} files of up to {largest:.0f} MB: rise {rise / 1e6:.0f} MB")
    assert len(shards) >= 10
    assert rise < 2 * max(shards)
    assert set(read(tmp_path / "merged")) == set(read(Path(config.model.base)))


def make_run_on(root: Path) -> Config:
    """A lora run on the base at root/model."""
    config = Config.model_validate(make_settings(root, "lora"))
    write_config(make_settings(root, "lora"))
    save_trained(config, trained_model(config))
    return config
