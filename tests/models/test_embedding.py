"""The embedding of a sharded base: rows read from whichever file holds them are the loaded table's, bit for bit."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from tests.distributed import run_ranks
from tests.small_models import COMMON

IN_A_FILE, IN_NONE = ("one file", "several files", "other names", "coarser"), ("pickled", "other")


def write_bases(root: Path) -> None:
    """The same base in several forms: what a file calls the table, and its precision, is the file's own affair."""
    torch.manual_seed(0)
    base = Gemma3ForCausalLM(Gemma3TextConfig(**{**COMMON, "vocab_size": 61}))
    for name in (*IN_A_FILE, *IN_NONE):
        base.save_pretrained(root / name, max_shard_size="8KB" if name == "several files" else "1GB")
    weights = load_file(root / "one file" / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    save_file(bare, root / "other names" / "model.safetensors", {"format": "pt"})
    save_file({k: v.bfloat16() for k, v in weights.items()}, root / "coarser" / "model.safetensors", {"format": "pt"})
    (root / "pickled" / "model.safetensors").unlink()
    torch.save(weights, root / "pickled" / "pytorch_model.bin")
    assert len(list((root / "several files").glob("*.safetensors"))) > 1


def rows_of(name: str, directory: Path, *, on_host: bool) -> None:
    """Compare rows on this rank, whose shard ends within a row."""
    import torch.distributed as dist

    from flare_ds.config import ModelConfig
    from flare_ds.models.embedding import read_on_host
    from flare_ds.models.loading import load_base
    from flare_ds.models.partitioned import gathered
    from flare_ds.runtime.process_group import rank
    from tests.by_hand import make_batch, make_config, make_rows

    base = load_base(ModelConfig(base=str(directory), dtype="float32"))
    embedding = base.get_input_embeddings()
    weight = embedding.weight
    with gathered([weight]):
        table_VD = weight.detach().clone()
    assert weight.ds_tensor.numel() % table_VD.shape[1], "every shard holds whole rows: nothing straddles"
    if name == "other" and rank() == 1:
        weight.ds_tensor.data[0] += 1  # as if this rank's file were another one
    rows = read_on_host(base, str(directory))
    assert (rows is not None) == on_host == ("weight" not in dict(embedding.named_parameters()))
    if rows is None:
        return
    batch = make_batch(make_rows(1, [([(3 + rank(), 2)], (4, 2))]), make_config())  # another shape on each rank
    reduce, dist.all_reduce = dist.all_reduce, None
    rows.read(batch)
    found_XLD = embedding(batch.input_ids)
    dist.all_reduce = reduce
    assert torch.equal(found_XLD, table_VD[batch.input_ids] * 16**0.5)  # Gemma scales by the root of its width
    assert weight.numel() == 0, "the table was gathered"


def worker(root: str) -> None:
    """One rank."""
    from transformers.integrations import HfDeepSpeedConfig

    from flare_ds.runtime.joining import join_process_group
    from flare_ds.runtime.process_group import rank, world_size

    join_process_group()
    alive = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    assert alive is not None
    for name in (*IN_A_FILE, *IN_NONE):
        rows_of(name, Path(root, name), on_host=name in IN_A_FILE)
    Path(root, f"done-{rank()}-of-{world_size()}").touch()


def test_rows_equal_the_whole_table(tmp_path: Path) -> None:
    write_bases(tmp_path)
    run_ranks(["tests.models.test_embedding", str(tmp_path)], 3)
    assert len(list(tmp_path.glob("done-*-of-3"))) == 3


if __name__ == "__main__":
    worker(sys.argv[1])
