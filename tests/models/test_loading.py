"""Loading, alone and under zero.Init on two ranks.

No rank's private memory ever holds the whole model, and a weight that the files lack is an error, not a random matrix.
"""

import json
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlavaConfig, PreTrainedConfig, T5Config

from flare_ds.config import ModelConfig, SourceConfig
from flare_ds.exceptions import CheckpointError, ConfigError
from flare_ds.models.loading import load_base, load_shape, load_tokenizer
from flare_ds.tokenizing.mt_tokens import load_mt_tokenizer
from tests.distributed import run_ranks
from tests.models.architectures import small_base
from tests.small_models import small_model
from tests.toy import REPOSITORY

MEGABYTE = 2**20


def private_memory() -> int:
    """Anonymous resident bytes: memory-mapped weight files are page cache and do not count."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def sample_peak(stop: threading.Event, peak: list[int]) -> None:
    while not stop.is_set():
        peak[0] = max(peak[0], private_memory())
        time.sleep(0.001)


def worker(directory: str, out: str) -> None:
    """One rank: load the model sharded, and report how far private memory rose above where it was."""
    from transformers.integrations import HfDeepSpeedConfig

    from flare_ds.models.partitioned import full_numel, gathered
    from flare_ds.runtime.joining import join_process_group
    from flare_ds.runtime.process_group import rank

    join_process_group()
    settings = json.loads((REPOSITORY / "ds_configs/zero3_cpu.json").read_text())
    zero = {key: value for key, value in settings["zero_optimization"].items() if value != "auto"}
    alive = HfDeepSpeedConfig(
        {"bf16": {"enabled": True}, "zero_optimization": zero, "train_micro_batch_size_per_gpu": 1}
    )
    before, stop = private_memory(), threading.Event()
    peak = [before]
    sampler = threading.Thread(target=sample_peak, args=(stop, peak))
    sampler.start()
    base = load_base(ModelConfig(base=f"{directory}/model"))
    stop.set()
    sampler.join()
    assert alive is not None
    with gathered([base.lm_head.weight]):
        checksum = base.lm_head.weight.double().sum().item()
    result = {
        "rise": peak[0] - before,
        "whole": 2 * sum(full_numel(parameter) for parameter in base.parameters()),
        "held": 2 * sum(parameter.ds_tensor.numel() for parameter in base.parameters()),
        "dtypes": sorted({str(parameter.dtype) for parameter in base.parameters()}),
        "checksum": checksum,
        "refused": refusal(Path(directory, "renamed")),
    }
    Path(f"{out}.{rank()}").write_text(json.dumps(result))


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_base(ModelConfig(base=str(directory)))
    return caught.value.problem


def write_renamed(directory: Path, *, tied: bool = False, only: str = "") -> Path:
    """A model whose weight files name their tensors as a wrapper would; `only`: just those with this in their name."""
    base, _ = small_model("llama")
    base.config.tie_word_embeddings = tied
    if tied:
        base.tie_weights()
    base.save_pretrained(directory)
    file = directory / "model.safetensors"
    weights = {(f"wrapped.{name}" if only in name else name): tensor for name, tensor in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return directory


def test_files_of_which_no_key_matches_are_refused(tmp_path: Path) -> None:
    problem = refusal(write_renamed(tmp_path))
    assert "lack 30 weights" in problem and "'lm_head.weight'" in problem


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_one_lacking_weight_is_refused(tmp_path: Path, quantization: str) -> None:
    write_renamed(tmp_path, only="layers.1.mlp.up_proj")
    with pytest.raises(CheckpointError, match=r"lack 1 weights .*'model.layers.1.mlp.up_proj.weight'"):
        load_base(ModelConfig(base=str(tmp_path), quantization=quantization))


def test_tied_weights_and_unknown_extra_ones_are_accepted(tmp_path: Path) -> None:
    write_renamed(tmp_path, tied=True, only="nothing")
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    assert "lm_head.weight" not in weights
    save_file(weights | {"unknown": torch.zeros(1)}, file, metadata={"format": "pt"})
    base = load_base(ModelConfig(base=str(tmp_path), dtype="float32"))
    assert torch.equal(base.lm_head.weight, weights["model.embed_tokens.weight"])


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_base_that_goes_straight_to_its_device_is_the_one_that_goes_by_the_host(
    tmp_path: Path, tied: bool, quantization: str
) -> None:
    """Its weights, in another precision than the files have, its buffers, which no file has, and what is shared."""
    write_renamed(tmp_path, tied=tied, only="nothing")
    model = ModelConfig(base=str(tmp_path), dtype="bfloat16", quantization=quantization)
    there, by_host = load_base(model, torch.device("cpu")), load_base(model)
    for named in ("named_parameters", "named_buffers"):
        found, wanted = (dict(getattr(base, named)()) for base in (there, by_host))
        assert wanted and found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert found[name].dtype == tensor.dtype, name
            bits = [each.detach().contiguous().view(torch.uint8) for each in (found[name], tensor)]
            assert torch.equal(*bits), name  # codes that lie in numbers of another type may be NaN
            assert found[name].requires_grad == tensor.requires_grad, name
    assert (there.lm_head.weight is there.model.embed_tokens.weight) == tied


def test_a_base_that_is_stored_quantised_is_refused(tmp_path: Path) -> None:
    small_model("llama")[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for load in (load_base, load_shape):
        with pytest.raises(ConfigError, match="stored quantized"):
            load(ModelConfig(base=str(tmp_path)))


def test_no_rank_holds_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=14,
        num_attention_heads=16,
        num_key_value_heads=16,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path / "model", max_shard_size="100MB")
    write_renamed(tmp_path / "renamed")
    out = str(tmp_path / "rank")
    # A fixed threshold makes glibc return freed tensors at once, so that resident memory is what is held, not what was.
    run_ranks(["tests.models.test_loading", str(tmp_path), out], 2, MALLOC_MMAP_THRESHOLD_=str(MEGABYTE // 4))
    for rank in range(2):
        found = json.loads(Path(f"{out}.{rank}").read_text())
        assert found["whole"] > 400 * MEGABYTE, "too small to tell a whole model from noise"
        assert found["held"] < 0.51 * found["whole"]
        assert found["rise"] < 0.6 * found["whole"], found
        assert found["dtypes"] == ["torch.bfloat16"]
        assert "lack 30 weights" in found["refused"]
        assert found["checksum"] == model.lm_head.weight.double().sum().item()


if __name__ == "__main__":
    worker(*sys.argv[1:])


def test_a_mistyped_path_is_told_from_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # it would try for a minute
    (tmp_path / "out/base").mkdir(parents=True)
    missing = r"there is no such directory: 'out' holds no 'bse'"
    for name, said in {
        "out/bse": missing,
        "out/bse/checkpoint": "is not a directory",
        "out/base/": "holds no config.json",
        "nobody/nothing": "(cannot|couldn't) (connect|find|reach|load)|offline",
    }.items():
        for load in (load_shape, load_tokenizer):
            with pytest.raises(ConfigError, match=said):
                load(ModelConfig(base=name))
    with pytest.raises(ConfigError, match=missing):
        load_mt_tokenizer(SourceConfig(mt_encoder="out/bse", mt_language="pl"))


def test_a_base_with_an_adapter_inside_is_refused(tmp_path: Path) -> None:
    """It would be put on top of the base without a word."""
    small_model("llama")[0].save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    for load in (load_shape, load_base):
        with pytest.raises(ConfigError, match=r"holds an adapter \(adapter_config.json\)"):
            load(ModelConfig(base=str(tmp_path)))


def test_weights_in_another_form_are_not_read_where_safetensors_are(tmp_path: Path) -> None:
    model, _ = small_model("llama")
    model.save_pretrained(tmp_path)
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(b"nothing")
    loaded = load_base(ModelConfig(base=str(tmp_path), dtype="float32"))
    assert torch.equal(loaded.get_output_embeddings().weight, model.get_output_embeddings().weight)


@pytest.mark.parametrize(("kind", "holder"), [(LlavaConfig, "LlavaForConditionalGeneration"), (T5Config, "T5Config")])
def test_a_base_that_is_no_causal_model_is_told_as_what_it_is(
    tmp_path: Path, kind: type[PreTrainedConfig], holder: str
) -> None:
    kind(architectures=[holder] if holder.endswith("Generation") else None).save_pretrained(tmp_path)
    for load in (load_shape, load_base):
        with pytest.raises(ConfigError, match=rf"holds a {holder}, .*no causal.*\n  fix: .*Llama.* flare_ds\.adapt"):
            load(ModelConfig(base=str(tmp_path)))


def test_an_attention_that_a_base_lacks_is_told_with_the_one_it_has(tmp_path: Path) -> None:
    small_base("bloom", "eager").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"fix: set model\.attention=eager"):
        load_base(ModelConfig(base=str(tmp_path), dtype="float32"))


def test_a_base_of_the_shipped_configs_that_was_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        load_shape(ModelConfig(base="models/smollm2"))
    assert raised.value.fix == "flare-ds fetch model smollm2 --link models/smollm2, or correct the path"
