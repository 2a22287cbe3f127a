"""What looks like a control token is text, and nothing is put in front of what follows one: all kinds of tokenizers."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from flare_ds.models.sentencepiece_file import load_model_file
from flare_ds.tokenizing.plain_text import encode_behind, encode_texts
from tests.toy import word_tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "additional_special_tokens": ["<turn>"]}
CONTROL = ["<s>", "</s>", "<turn>", "<unk>"]
WORDS = ["very", "good", "bad", "Mood", ":"]
LETTERS = sorted({"▁", *"abcdefghijklmnopqrstuvwxyzM5:.<>/"})


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    number = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", number)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def pieces_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    pieces, merges = ["<unk>", "<s>", "</s>", *LETTERS], []
    for word in WORDS:
        left = "▁"
        for letter in word:
            merges.append((left, letter))
            left += letter
            pieces.append(left)
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}, list(dict.fromkeys(merges))


def prepend(_: Path) -> PreTrainedTokenizerBase:
    """As Llama 2's tokenizer.json: `▁` is put in front of whatever comes."""
    tokenizer = Tokenizer(models.BPE(*pieces_and_merges(), unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return wrapped(tokenizer)


def metaspace(scheme: str) -> Callable[[Path], PreTrainedTokenizerBase]:
    def made(_: Path) -> PreTrainedTokenizerBase:
        tokenizer = Tokenizer(models.BPE(*pieces_and_merges(), unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
        return wrapped(tokenizer)

    made.__name__ = f"metaspace_{scheme}"
    return made


def unigram(_: Path) -> PreTrainedTokenizerBase:
    """As XGLM: control tokens are pieces too, and the likeliest."""
    worth = {"<s>": 0.0, "</s>": 0.0, "<unk>": 0.0} | dict.fromkeys(LETTERS, -8.0)
    worth |= {f"▁{word}": -5.0 for word in WORDS}
    tokenizer = Tokenizer(models.Unigram(list(worth.items()), unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return wrapped(tokenizer)


def bytes_(_: Path) -> PreTrainedTokenizerBase:
    """As GPT-2; the chat template uses a token that is not marked as special."""
    ids = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(ids | {"<s>": 256, "Ġg": 257, "Ġgo": 258}, [("Ġ", "g"), ("Ġg", "o")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = wrapped(tokenizer)
    made.add_tokens(["<turn>", "<unused5>"], special_tokens=False)
    made.chat_template = "{{ messages }}<turn>"
    return made


def slow(_: Path) -> PreTrainedTokenizerBase:
    return ByT5Tokenizer(extra_ids=1, additional_special_tokens=["<extra_id_0>", "<turn>"])


def bare(directory: Path) -> PreTrainedTokenizerBase:
    """A sentencepiece file; its dummy prefix comes on top of the space that is written."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS), "abc <turn> </s> <s>"] * 30),
        model_writer=model,
        model_type="bpe",
        hard_vocab_limit=False,
        remove_extra_whitespaces=False,
        byte_fallback=True,
        vocab_size=330,
        minloglevel=2,
    )
    (directory / "bare.model").write_bytes(model.getvalue())
    return load_model_file(directory / "bare.model")


KINDS = [prepend, metaspace("always"), metaspace("first"), metaspace("never"), unigram, bytes_, slow, bare]
of_every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
ORDINARY = ["very good", "a b  c", "", " ", "Mood: bad", "a < b > c / s"]


@of_every_kind
@pytest.mark.parametrize("added", [True, False])
def test_texts_without_control_tokens_have_the_ids_that_the_tokenizer_gives(
    kind: Callable, added: bool, tmp_path: Path
) -> None:
    tokenizer = kind(tmp_path)
    plain = tokenizer(ORDINARY, add_special_tokens=added)["input_ids"]
    assert encode_texts(tokenizer, ORDINARY, add_special_tokens=added) == plain


@of_every_kind
def test_what_looks_like_a_control_token_is_text(kind: Callable, tmp_path: Path) -> None:
    tokenizer = kind(tmp_path)
    control = {*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids(["<turn>", "<unused5>"])}
    texts = [*ORDINARY, *CONTROL, *(f"a {token} b{token}{token}" for token in CONTROL), "a <unused5>", "</s> <s>c</s>"]
    around = tokenizer("")["input_ids"]
    for text, ids in zip(texts, encode_texts(tokenizer, texts, add_special_tokens=True), strict=True):
        ends = len(around) - 1 if around and tokenizer.bos_token_id == around[0] else len(around)
        own = ids[len(around) - ends : len(ids) - ends] if kind is not slow else ids[: len(ids) - len(around)]
        assert not control.intersection(own), text
        assert ids == [*around[: len(around) - ends], *own, *around[len(around) - ends :]]
        said = tokenizer.decode(own, clean_up_tokenization_spaces=False)
        if text.isascii() and "metaspace" not in kind.__name__:
            assert said.strip() == text.strip()


@of_every_kind
@pytest.mark.parametrize("before", ["Mood:", "a b", "good ."])
def test_what_follows_a_text_is_what_tokenizing_both_together_adds(kind: Callable, before: str, tmp_path: Path) -> None:
    tokenizer = kind(tmp_path)
    texts = [" good", " very bad", " abc", "\n", " a </s>", " Mood: good"]
    if "metaspace" in kind.__name__ or kind is unigram or kind is prepend:
        texts.remove("\n")
    start, *whole = encode_texts(tokenizer, [before, *(before + text for text in texts)], add_special_tokens=False)
    assert all(ids[: len(start)] == start for ids in whole)
    assert encode_behind(tokenizer, texts) == [ids[len(start) :] for ids in whole]


def test_a_dummy_in_front_is_no_part_of_what_follows(tmp_path: Path) -> None:
    for kind in (prepend, bare):
        tokenizer = kind(tmp_path)
        alone = tokenizer([" good"], add_special_tokens=False)["input_ids"][0]
        assert tokenizer.convert_ids_to_tokens(alone)[0] == "▁"
        (ids,) = encode_behind(tokenizer, [" good"])
        assert tokenizer.convert_ids_to_tokens(ids) == ["▁good"] and alone[-1:] == ids


def test_ordinary_tokenizers_say_what_they_say_alone(tmp_path: Path) -> None:
    texts = [" good", " very bad", " ", " Mood:"]
    for tokenizer in (bytes_(tmp_path), word_tokenizer(WORDS), metaspace("first")(tmp_path), slow(tmp_path)):
        alone = tokenizer(texts, add_special_tokens=False)["input_ids"]
        assert encode_behind(tokenizer, texts) == alone
