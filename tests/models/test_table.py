"""The table of docs/models.md: every architecture in it is trained, evaluated and decoded here, through the verbs."""

import gc
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from flare_ds.cli import main
from flare_ds.models.checked import CHECKED, Checked, checked_table
from flare_ds.runtime.engine import make_room
from tests.models.architectures import ARCHITECTURES, TITLES, small_base, writes
from tests.toy import REPOSITORY, WORDS, toy_settings, word_tokenizer, write_config, write_data, write_model


@pytest.fixture(scope="module")
def run_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The defaults of flare; all bases have one tokenizer, and so one cache."""
    root = tmp_path_factory.mktemp("table")
    write_model(root / "model", hidden=32)
    write_data(root / "data", rows=30)
    settings = toy_settings(root)
    settings["task"] |= {"validation_rows": 4, "test_rows": 5}
    settings["train"] |= {"steps": 2, "batch_size": 4, "validate_every": 2}
    settings["generate"] = {"max_new_tokens": 3}
    return write_config(settings)


def piece_tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs, which transformers makes of any tokenizer beside a Qwen 2; each word is merged from its left."""
    pieces, merges = sorted(ByteLevel.alphabet()), []
    for word in WORDS:
        for end in range(1, len(word) + 1):
            left, piece = "Ġ" + word[: end - 1], "Ġ" + word[:end]
            if piece not in pieces:
                pieces.append(piece)
                merges.append((left, word[end - 1]))
    tokenizer = Tokenizer(BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def run(*arguments: str | Path) -> None:
    """Run a verb, and let its model go."""
    try:
        assert main(list(map(str, arguments))) == 0
    finally:
        make_room()
        gc.collect()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trains_evaluates_and_decodes(name: str, run_yaml: Path, tmp_path: Path) -> None:
    """Validation ranks the label words, the test rows are answered by decoding."""
    base = small_base(name, ARCHITECTURES[name].attentions[0], **({"vocab_size": 512} if name == "qwen2" else {}))
    base.save_pretrained(tmp_path / "base")
    tokenizer = piece_tokenizer() if name == "qwen2" else word_tokenizer()
    tokenizer.save_pretrained(tmp_path / "base")
    changes = [f"model.base={tmp_path}/base", f"run_dir={tmp_path}/run", f"adapter.fused_modules={writes(name)}"]
    run("train", run_yaml, *changes, f"model.attention={ARCHITECTURES[name].attentions[0]}")
    run("evaluate", tmp_path / "run", "evaluate.answers=generated")
    scores = json.loads((tmp_path / "run/metrics.json").read_text())
    assert scores["num_examples"] == 5 and scores["answers"] == "generated"


def test_the_page_and_the_verb_list_these_and_no_others() -> None:
    assert list(CHECKED) == [
        Checked(TITLES[name], one.kind, tuple(writes(name)), one.attentions, one.fused)
        for name, one in ARCHITECTURES.items()
    ]
    assert f"\n{checked_table()}\n\n" in (REPOSITORY / "docs/models.md").read_text(encoding="utf-8")
