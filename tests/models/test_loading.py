"""Loading under zero.Init on two ranks: no rank's private memory ever holds the whole model."""

import json
import sys
import threading
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.distributed import run_ranks
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

    from flare_ds.config import ModelConfig
    from flare_ds.models.loading import load_base
    from flare_ds.models.partitioned import full_numel, gathered
    from flare_ds.training.process_group import join_process_group, rank

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
    base = load_base(ModelConfig(base=directory))
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
    }
    Path(f"{out}.{rank()}").write_text(json.dumps(result))


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
    out = str(tmp_path / "rank")
    # A fixed threshold makes glibc return freed tensors at once, so that resident memory is what is held, not what was.
    run_ranks(["tests.models.test_loading", str(tmp_path / "model"), out], 2, MALLOC_MMAP_THRESHOLD_=str(MEGABYTE // 4))
    for rank in range(2):
        found = json.loads(Path(f"{out}.{rank}").read_text())
        assert found["whole"] > 400 * MEGABYTE, "too small to tell a whole model from noise"
        assert found["held"] < 0.51 * found["whole"]
        assert found["rise"] < 0.6 * found["whole"], found
        assert found["dtypes"] == ["torch.bfloat16"]
        assert found["checksum"] == model.lm_head.weight.double().sum().item()


if __name__ == "__main__":
    worker(*sys.argv[1:])
