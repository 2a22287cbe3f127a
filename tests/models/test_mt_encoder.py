"""The MT encoder against its own model run text by text, and its projection against the oracle."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, M2M100Tokenizer

from flare_ds.adapters.inject import inject_adapter
from flare_ds.batches.collate import NO_TARGET
from flare_ds.config import SourceConfig
from flare_ds.exceptions import ConfigError
from flare_ds.models.mt_encoder import MTEncoder, make_projection
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.tokenizing.mt_tokens import load_mt_tokenizer, mt_text
from flare_ds.tokenizing.plain_text import encode_texts
from tests.by_hand import ProjectedBase, make_batch, make_config, make_oracle, make_rows, oracle_base, short_name
from tests.mt import LANGUAGES, write_mt_model
from tests.oracle import Row
from tests.small_models import small_model

WIDTH = 6
TEXTS = ["word1 word2 word3", "word4", "word5 word6"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceConfig:
    return make_source(write_mt_model(tmp_path_factory.mktemp("nllb")))


def make_source(directory: Path, language: str = "pol_Latn") -> SourceConfig:
    return SourceConfig(mt_encoder=str(directory), mt_language=language)


def load(source: SourceConfig) -> MTEncoder:
    return MTEncoder(source, dtype=torch.float32, device=torch.device("cpu"))


def test_a_text_carries_the_tag_of_its_own_language(source: SourceConfig) -> None:
    for language in LANGUAGES:
        tokenizer = load_mt_tokenizer(source.model_copy(update={"mt_language": language}))
        (tokens,) = encode_texts(tokenizer, ["word1"], truncation=True, max_length=20)
        assert tokenizer.convert_ids_to_tokens(tokens) == [language, *"▁word1", "</s>"]


def test_a_long_text_loses_its_end_and_keeps_its_marks(source: SourceConfig) -> None:
    tokenizer = load_mt_tokenizer(source)
    (tokens,) = encode_texts(tokenizer, ["word1 word2 word3"], truncation=True, max_length=8)
    assert tokenizer.convert_ids_to_tokens(tokens) == ["pol_Latn", *"▁word1", "</s>"]


def test_an_unknown_tag_suggests_the_nearest(source: SourceConfig) -> None:
    with pytest.raises(ConfigError, match=r"source\.mt_language='pol_latn' is no language") as refused:
        load_mt_tokenizer(source.model_copy(update={"mt_language": "pol_latn"}))
    assert "did you mean 'pol_Latn'?" in refused.value.fix


def test_m2m100_has_tags_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("word1 word2 word3\n" * 20, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spm"), vocab_size=12, minloglevel=2
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    words = ["<s>", "<pad>", "</s>", "<unk>", *(pieces.id_to_piece(i) for i in range(3, len(pieces)))]
    (tmp_path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    M2M100Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "spm.model")).save_pretrained(tmp_path / "m2m")
    tokenizer = load_mt_tokenizer(make_source(tmp_path / "m2m", "pl"))
    (tokens,) = encode_texts(tokenizer, ["word1"], truncation=True, max_length=20)
    assert tokenizer.convert_ids_to_tokens(tokens[:1] + tokens[-1:]) == ["__pl__", "</s>"]
    with pytest.raises(ConfigError, match="mt_language='pol'") as refused:
        load_mt_tokenizer(make_source(tmp_path / "m2m", "pol"))
    assert "did you mean 'pl'?" in refused.value.fix


def test_what_is_no_mt_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source.mt_encoder='.*' cannot be used"):
        load_mt_tokenizer(make_source(tmp_path))


def test_states_are_those_of_each_text_alone(source: SourceConfig) -> None:
    encoder = load(source)
    texts = encode_texts(encoder.tokenizer, TEXTS, truncation=True, max_length=20)
    alone = AutoModelForSeq2SeqLM.from_pretrained(source.mt_encoder).eval().get_encoder()
    for text, states_n1D in zip(texts, encoder.states(texts), strict=True):
        expected = alone(input_ids=torch.tensor([text])).last_hidden_state[0, :, None]
        assert not states_n1D.requires_grad
        torch.testing.assert_close(states_n1D, expected, atol=1e-5, rtol=1e-5)


def test_a_row_is_read_without_its_prompt() -> None:
    assert mt_text({"question": "who ?", "context": "nobody ."}) == "who ? nobody ."
    assert mt_text({"premise": "A dog", "hypothesis": "An animal"}) == "A dog. An animal"
    assert mt_text({"premise": "वह गया।", "middle": " ", "hypothesis": "हाँ "}) == "वह गया। हाँ"


def test_the_projection_follows_from_the_seed(source: SourceConfig) -> None:
    base, config, state = small_model("llama")[0], make_config(method="flare_mt"), torch.get_rng_state()
    config = config.model_copy(update={"source": source})
    seeds = [config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})}) for seed in (1, 1, 2)]
    first, same, other = (make_projection(base, one) for one in seeds)
    assert first is not None and same is not None and other is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.weight, same.weight) and not torch.equal(first.weight, other.weight)
    assert first.weight.shape == (16, 24) and first.bias is not None and first.weight.dtype == torch.float32


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("align", ["right", "left", "stretch"])
def test_a_projected_source_equals_the_oracle(align: str, checkpointing: bool) -> None:
    """Logits, loss and all gradients; adapter.pairing and adapter.source_norm, set here, mean nothing to it."""
    config = make_config(method="flare_mt", align=align, checkpointing=checkpointing)
    base, _ = small_model("llama", layers=2)
    hidden = base.config.hidden_size
    generator = torch.Generator().manual_seed(1)
    model = TwoStreamModel(
        inject_adapter(base, config.adapter, sources=1, seed=7), config, nn.Linear(WIDTH, hidden)
    ).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "projection" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    encoded = [torch.randn(n, WIDTH, generator=generator) for n in (4, 7, 1, 3, 5)]
    plain = make_rows()
    batch = make_batch(plain, make_config(method="lora"))
    stored_BMKD = torch.full((5, 7, 1, WIDTH), 50.0)  # padding that would be seen
    for row, states in enumerate(encoded):
        stored_BMKD[row, 7 - len(states) :, 0] = states
    lengths = torch.tensor([[len(states) for states in encoded]])
    batch = replace(batch, stored_BMKD=stored_BMKD, source_lengths_SB=lengths)

    frozen = oracle_base("llama")
    projected = ProjectedBase(frozen.w, frozen.s)
    settings = config.adapter.model_copy(update={"pairing": "input", "source_norm": False})
    oracle = make_oracle(model, projected, config.model_copy(update={"adapter": settings}))
    projected.trained, projected.encoded = oracle.trained, {i: states.double() for i, states in enumerate(encoded)}

    logits_BNK = model(batch)
    expected_loss = torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(plain):
        row = Row(row.target, row.answer, [([i] * len(encoded[i]), [])])
        expected_NK = oracle.logits(row, len(row.answer))
        torch.testing.assert_close(logits_BNK[i, : len(row.answer)].double(), expected_NK, atol=1e-5, rtol=1e-5)
        expected_loss = expected_loss - expected_NK.log_softmax(-1)[range(len(row.answer)), row.answer].sum()
    answers = batch.answers_BN.flatten()
    loss = nn.functional.cross_entropy(logits_BNK.flatten(0, 1), answers, ignore_index=NO_TARGET, reduction="sum")
    torch.testing.assert_close(loss.double(), expected_loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected_loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            wanted = oracle.trained[short_name(name)].grad
            scale = wanted.abs().max()
            assert scale > 0, name
            torch.testing.assert_close(parameter.grad.double() / scale, wanted / scale, atol=1e-5, rtol=1e-5, msg=name)
