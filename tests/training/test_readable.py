"""A base that has no embedding for a token, or no place for a position, is refused before anything is trained."""

import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    AddedToken,
    AutoTokenizer,
    LlamaConfig,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from flare_ds.cli import main
from flare_ds.config import ModelConfig
from flare_ds.exceptions import ConfigError
from flare_ds.model_files.limits import check_positions, check_tokenizer
from flare_ds.models.loading import load_shape, load_tokenizer
from tests.models.architectures import small_base
from tests.toy import toy_settings, word_tokenizer, write_config, write_data, write_model

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_model(root / "model", hidden=32)
    write_data(root / "data", rows=60)
    return root


@pytest.fixture(scope="module")
def run_yaml(root: Path) -> str:
    settings = toy_settings(root)
    settings["task"] |= {"validation_rows": 9, "test_rows": 10}
    settings["train"] |= {"steps": 2, "validate_every": 2}
    return str(write_config(settings))


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each letter, so that label words have many."""
    letters = ["<bos>", "<eos>", "<pad>", "<unk>", *string.printable]
    tokenizer = Tokenizer(WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def opt(directory: Path, positions: int, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    tokenizer = tokenizer or word_tokenizer()
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "ffn_dim": 64, "word_embed_proj_dim": 32, "num_hidden_layers": 2}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = OPTConfig(
        vocab_size=len(tokenizer), num_attention_heads=4, max_position_embeddings=positions, **sizes, **special
    )
    OPTForCausalLM(config).save_pretrained(directory)
    return directory


def grown(directory: Path, **special: Any) -> Path:
    """The model with a tokenizer that knows a token more than its embedding."""
    write_model(directory, hidden=32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens(special) if special else tokenizer.add_tokens(["@user"])
    tokenizer.save_pretrained(directory)
    return directory


def message(capsys: Said, *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("verb", ["prepare", "train", "evaluate"])
@pytest.mark.parametrize("more", [{}, {"pad_token": "<pad2>"}])
def test_a_token_without_an_embedding_is_refused_with_both_numbers(
    run_yaml: str, tmp_path: Path, capsys: Said, verb: str, more: dict[str, str]
) -> None:
    rows, token = len(word_tokenizer()), more.get("pad_token", "@user")
    base = grown(tmp_path / "base", **more)
    untrained = ["method=zero_shot"] if verb == "evaluate" else []
    said = message(capsys, verb, run_yaml, f"model.base={base}", f"run_dir={tmp_path}/run", *untrained)
    assert f"gives '{token}' the id {rows}, but the embedding of model.base='{base}' has {rows} rows" in said
    assert "resize_token_embeddings" in said and not (tmp_path / "run").exists()


def test_a_cache_with_such_a_token_is_refused_where_no_tokenizer_is_loaded(
    run_yaml: str, tmp_path: Path, capsys: Said
) -> None:
    """As when a run is evaluated from its recorded cache and its base has changed meanwhile."""
    base = write_model(tmp_path / "base", hidden=32)
    settings = [run_yaml, f"model.base={base}", f"run_dir={tmp_path}/run", "method=zero_shot"]
    assert main(["evaluate", *settings]) == 0
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"vocab_size": 20}))
    assert "its contents differ" in message(capsys, "evaluate", *settings)


def test_tokens_that_no_text_becomes_may_lie_behind_the_embedding(root: Path, tmp_path: Path) -> None:
    """Gemma 3's token for images does; more rows than tokens is what most bases have."""
    tokenizer = word_tokenizer()
    check_tokenizer(tokenizer, str(root / "model"), setting="model.base")
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<image>", special=True)]})
    check_tokenizer(tokenizer, str(root / "model"), setting="model.base")
    tokenizer.add_tokens(["@user"])
    with pytest.raises(ConfigError, match=r"gives '@user' the id .*source.mt_encoder="):
        check_tokenizer(tokenizer, str(root / "model"), setting="source.mt_encoder")
    LlamaConfig(vocab_size=1000).save_pretrained(tmp_path)
    check_tokenizer(tokenizer, str(tmp_path), setting="model.base")


def test_predict_refuses_such_a_tokenizer_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gives '@user' the id "):
        load_tokenizer(ModelConfig(base=str(grown(tmp_path / "base"))))


def test_rows_beyond_learned_positions_are_refused(run_yaml: str, tmp_path: Path, capsys: Said) -> None:
    base = opt(tmp_path / "base", positions=6)
    settings = [run_yaml, f"model.base={base}", f"run_dir={tmp_path}/run", "adapter.fused_modules=[out_proj,fc2]"]
    for verb in ("prepare", "train"):
        said = message(capsys, verb, *settings)
        assert (
            "the longest row of the train split has" in said and "model.base (OPTForCausalLM) has 6 positions" in said
        )
        assert "task.max_prompt_tokens" in said and not (tmp_path / "run").exists()
    assert "longest text" in message(
        capsys, "predict", *settings, "method=zero_shot", "--target", "word1 word2 word3 word4 word5"
    )


def test_a_target_that_goes_on_behind_its_source_needs_the_positions_of_both(
    run_yaml: str, tmp_path: Path, capsys: Said
) -> None:
    base, text = opt(tmp_path / "base", positions=20), " ".join(["word1"] * 10)
    settings = [run_yaml, f"model.base={base}", f"run_dir={tmp_path}/run", "method=source_prefix"]
    said = message(capsys, "predict", *settings, "--target", text, "--source", text)
    prompt = len(word_tokenizer()(f"Review: {text}\nSentiment:")["input_ids"])
    assert prompt < 20 < 2 * prompt - 2
    assert re.search(r"longest text .* has (\d+) tokens", said)[1] == str(2 * prompt - 1)  # but one <bos>


def test_texts_beyond_computed_positions_are_read_and_warned_of(run_yaml: str, tmp_path: Path, capsys: Said) -> None:
    base = write_model(tmp_path / "base", hidden=32)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8}))
    settings = [run_yaml, f"model.base={base}", f"run_dir={tmp_path}/run", "method=zero_shot"]
    for words, warned in ((1, False), (10, True)):
        capsys.readouterr()
        assert main(["predict", *settings, "--target", " ".join(["word1"] * words)]) == 0
        assert ("warning: the longest text with its prompt and answer has" in capsys.readouterr().err) == warned


def test_what_is_written_needs_positions_too(run_yaml: str, tmp_path: Path, capsys: Said) -> None:
    base = opt(tmp_path / "base", positions=20)
    settings = [run_yaml, f"model.base={base}", f"run_dir={tmp_path}/run", "method=zero_shot"]
    assert main(["evaluate", *settings]) == 0
    assert main(["evaluate", *settings, "evaluate.answers=generated", "generate.max_new_tokens=4"]) == 0
    said = message(capsys, "evaluate", *settings, "evaluate.answers=generated", "generate.max_new_tokens=40")
    assert "longest row of the test split has" in said and "has 20 positions" in said


def test_label_words_of_several_tokens_need_positions_behind_the_prompt(
    run_yaml: str, tmp_path: Path, capsys: Said
) -> None:
    """Up to where they differ: behind `ne` negative goes on otherwise than neutral."""
    settings = [run_yaml, f"run_dir={tmp_path}/run", "method=zero_shot", "task.max_prompt_tokens=40"]
    for positions, enough in ((41, False), (42, True)):
        base = opt(tmp_path / str(positions), positions, letter_tokenizer())
        if enough:
            assert main(["evaluate", *settings, f"model.base={base}"]) == 0
        else:
            said = message(capsys, "prepare", *settings, f"model.base={base}")
            assert "split has 42 tokens" in said and "has 41 positions" in said


def test_label_words_that_will_be_longer_than_what_is_written_are_refused_before_it_trains(
    run_yaml: str, tmp_path: Path, capsys: Said
) -> None:
    """Training and its validations rank them, and would come to their end."""
    base = opt(tmp_path / "base", 80, letter_tokenizer())
    settings = [run_yaml, f"model.base={base}", f"run_dir={tmp_path}/run", "task.max_prompt_tokens=40"]
    settings += ["adapter.fused_modules=[out_proj,fc2]", "evaluate.answers=generated", "generate.max_new_tokens=4"]
    for verb in ("prepare", "train"):
        said = message(capsys, verb, *settings)
        assert "the label word 'ambivalent' has 1" in said and "set generate.max_new_tokens=1" in said
    assert not (tmp_path / "run").exists()


def test_every_position_of_a_table_is_used(tmp_path: Path) -> None:
    shape = load_shape(ModelConfig(base=str(opt(tmp_path / "base", positions=8)), dtype="float32"))
    assert check_positions(shape, 8, of="a row") is None
    with pytest.raises(ConfigError, match=r"a row has 9 tokens, .* has 8 positions"):
        check_positions(shape, 9, of="a row")
    model = OPTForCausalLM.from_pretrained(tmp_path / "base")
    model(input_ids=torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(IndexError):
        model(input_ids=torch.zeros(1, 9, dtype=torch.long))


@pytest.mark.parametrize("name", ["llama3", "gemma4", "falcon_alibi"])
def test_computed_positions_are_only_warned_of(name: str) -> None:
    warning = check_positions(small_base(name), 65, of="the row")
    assert warning and "the row has 65 tokens" in warning and "64 positions" in warning
    assert check_positions(small_base(name), 64, of="the row") is None


@pytest.mark.parametrize(
    ("parameters", "fixed"),
    [
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 64),
        ({"rope_type": "longrope", "original_max_position_embeddings": 32, "rope_theta": 1e4}, 32),
        ({"full_attention": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, 64),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}, None),
    ],
)
def test_positions_that_follow_the_longest_row_of_a_batch_are_warned_of(parameters: dict, fixed: int | None) -> None:
    shape = small_base("llama3")
    shape.config.rope_parameters = parameters
    assert check_positions(shape, fixed or 64, of="the row") is None
    warning = check_positions(shape, (fixed or 64) + 1, of="the row")
    assert warning and ("depends on the others in its batch" in warning) == (fixed is not None)


def test_bases_without_a_number_of_positions_take_any_row() -> None:
    shape = small_base("bloom", "eager")
    del shape.config.max_position_embeddings  # BLOOM's own configurations have none
    assert check_positions(shape, 10**6, of="the row") is None
