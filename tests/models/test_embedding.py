"""The sharded embedding returns the whole table's rows bit for bit, on ranks whose shards end within a row."""

import sys
from pathlib import Path

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from tests.distributed import run_ranks
from tests.small_models import COMMON


def worker(directory: str) -> None:
    from transformers.integrations import HfDeepSpeedConfig

    from flare_ds.config import ModelConfig
    from flare_ds.models.embedding import shard_embedding
    from flare_ds.models.loading import load_base
    from flare_ds.models.partitioned import gathered
    from flare_ds.runtime.joining import join_process_group
    from flare_ds.runtime.process_group import rank, world_size

    join_process_group()
    alive = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    base = load_base(ModelConfig(base=directory, dtype="float32"))
    assert alive is not None
    embedding = base.get_input_embeddings()
    weight = embedding.weight
    with gathered([weight]):
        table = weight.detach().clone()
    assert weight.ds_tensor.numel() % table.shape[1], "every shard holds whole rows: nothing straddles"
    shard_embedding(base)
    assert "weight" not in dict(embedding.named_parameters())
    generator = torch.Generator().manual_seed(rank())
    for _ in range(3):
        ids = torch.randint(0, table.shape[0], (2, 5 + rank()), generator=generator)  # another shape on each rank
        assert torch.equal(embedding(ids), table[ids] * 16**0.5)  # Gemma scales by the root of its width
    assert weight.numel() == 0, "the table was gathered"
    Path(directory, f"done-{rank()}-of-{world_size()}").touch()


def test_rows_equal_the_whole_table(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Gemma3TextConfig(**{**COMMON, "vocab_size": 61})
    Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    run_ranks(["tests.models.test_embedding", str(tmp_path)], 3)
    assert len(list(tmp_path.glob("done-*-of-3"))) == 3


if __name__ == "__main__":
    worker(sys.argv[1])
