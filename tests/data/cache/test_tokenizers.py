"""Every kind of tokenizer says its prompts again, and a cache knows it by what it does, not by where it lies."""

import io
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import ByT5Tokenizer, M2M100Tokenizer, NllbTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from flare_ds.config import ModelConfig
from flare_ds.data.cache import open_cache, prepare_cache
from flare_ds.exceptions import ConfigError
from flare_ds.models.loading import load_tokenizer
from flare_ds.tokenizing.fingerprint import tokenizer_fingerprint
from tests.data.cache.texts import LABELS, LANGUAGES, Tables, decode, make_config, prompt, write_tables

WORDS = [f"słowo{number}" for number in range(20)]
TEXTS = [" ".join(WORDS[number % 20 : number % 20 + 1 + number % 4]) for number in range(12)]
ALPHABET = sorted(set("".join([*TEXTS, *LABELS, "trainvalidationtest0123456789:Answer"])) - {" "})
AWKWARD = [
    "",
    " ",
    "  two  spaces ",
    "line\nbreak\ttab",
    "שלום नमस्ते 😀 e\u0301",
    "ﬁne ½",
    "<s> </s>",
    "<unk>",
    "<0xE2>",
    "▁",
]


def save(tokenizer: PreTrainedTokenizerBase, directory: Path, model_type: str) -> Path:
    tokenizer.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return directory


def fast(directory: Path, piece: str) -> Path:
    """Bytes, and one piece of two bytes."""
    ids = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(ids | {piece: len(ids)}, [tuple(piece)]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return save(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>"), directory, "llama")


def slow(directory: Path, piece: str) -> Path:
    """Bytes too, in Python; it has no vocabulary file, so a piece can but be added."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.add_tokens([piece])
    assert not tokenizer.is_fast
    return save(tokenizer, directory, "t5")


def sentencepiece_bytes(kind: str = "bpe", **settings: object) -> bytes:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["oło", *TEXTS * 9]),
        model_writer=model,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"vocab_size": 330, "byte_fallback": True, "normalization_rule_name": "identity"} | settings,
    )
    return model.getvalue()


def bare_sentencepiece(directory: Path, piece: str) -> Path:
    """A sentencepiece file and a model's configuration, nothing else."""
    directory.mkdir()
    model = sentencepiece_bytes()
    assert model.count("▁sł".encode()) > 1
    (directory / "tokenizer.model").write_bytes(model.replace("▁sł".encode(), "▁s".encode() + piece.encode(), 1))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return directory


def nllb(directory: Path, piece: str) -> Path:
    """Single characters, in the class of the real one."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *ALPHABET, piece]
    ids = {piece: number for number, piece in enumerate(pieces)}
    return save(NllbTokenizer(vocab=ids, merges=[], additional_special_tokens=["eng_Latn"]), directory, "m2m_100")


def m2m(directory: Path, piece: str) -> Path:
    """Sentencepiece's pieces, with numbers of their own."""
    directory.mkdir()
    (directory / "pieces.model").write_bytes(sentencepiece_bytes())
    sentencepiece = SentencePieceProcessor(model_file=str(directory / "pieces.model"))
    pieces = [sentencepiece.id_to_piece(number) for number in range(len(sentencepiece))]
    (directory / "ids.json").write_text(json.dumps({name: number for number, name in enumerate([*pieces, piece])}))
    tokenizer = M2M100Tokenizer(str(directory / "ids.json"), str(directory / "pieces.model"), src_lang="en")
    assert not tokenizer.is_fast
    shutil.rmtree(directory)
    return save(tokenizer, directory, "m2m_100")


Kind = Callable[[Path, str], Path]
KINDS: list[Kind] = [fast, slow, bare_sentencepiece, nllb, m2m]
of_every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def load(place: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(ModelConfig(base=str(place)))


def tables() -> Tables:
    """The same row in both languages, which every one of the alphabets can say."""

    def record(split: str, number: int) -> dict[str, object]:
        return {"id": f"{split}{number}", "text": TEXTS[number], "note": f"{split}{number}", "label": "good"}

    sizes = {"train": 12, "validation": 2, "test": 2}
    return {
        split: {language: [record(split, number) for number in range(size)] for language in LANGUAGES}
        for split, size in sizes.items()
    }


@of_every_kind
def test_a_cache_says_its_prompts_again(kind: Kind, tmp_path: Path) -> None:
    tokenizer = load(kind(tmp_path / "model", "ab"))
    write_tables(tmp_path, tables())
    split = open_cache(prepare_cache(make_config(tmp_path), tokenizer)).split("train")
    rows = {split.ids(row): row for row in range(len(split))}
    assert len(rows) == 12
    for record in tables()["train"]["en"]:
        for stream in ("source", "target"):
            said = split.prompt(stream, rows[record["id"]]).tolist()
            assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in said
            assert decode(tokenizer, said).removeprefix("__en__ ") == prompt(record)  # M2M's language is a word to it
            assert decode(tokenizer, split.answer(stream, rows[record["id"]]).tolist()).strip() == "good"


@of_every_kind
def test_a_key_holds_what_the_tokenizer_does(kind: Kind, tmp_path: Path) -> None:
    tokenizer = load(kind(tmp_path / "model", "ab"))
    fingerprint = tokenizer_fingerprint(tokenizer)
    tokenizer(TEXTS[:2], padding=tokenizer.pad_token is not None, truncation=True, max_length=5)
    tokenizer.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved/config.json").write_bytes((tmp_path / "model/config.json").read_bytes())
    shutil.copytree(tmp_path / "model", tmp_path / "copied")
    worker = pickle.loads(pickle.dumps(tokenizer))
    for same in (tokenizer, load(tmp_path / "copied"), load(tmp_path / "saved"), worker):
        assert tokenizer_fingerprint(same) == fingerprint
        assert same(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert tokenizer_fingerprint(load(kind(tmp_path / "changed", "ac"))) != fingerprint


@of_every_kind
def test_a_changed_piece_makes_another_cache(kind: Kind, tmp_path: Path) -> None:
    write_tables(tmp_path, tables())
    config = make_config(tmp_path)
    one, other, again = (
        open_cache(prepare_cache(config, load(kind(tmp_path / name, piece))))
        for name, piece in (("one", "ab"), ("other", "ac"), ("again", "ab"))
    )
    assert one.path == again.path != other.path
    changed = [name for name, value in one.manifest.fields.items() if other.manifest.fields[name] != value]
    assert changed == ["tokenizer_sha256"]


def test_how_a_slow_tokenizer_cuts_a_text_is_part_of_its_key(tmp_path: Path) -> None:
    """Of two settings of one class, the vocabulary files are the same."""
    (tmp_path / "vocab.txt").write_text("\n".join(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "A", "a", "."]))
    as_it_is, lower = (BertTokenizerLegacy(str(tmp_path / "vocab.txt"), do_lower_case=lower) for lower in (False, True))
    assert as_it_is("A")["input_ids"] != lower("A")["input_ids"] == lower("a")["input_ids"]
    assert tokenizer_fingerprint(as_it_is) != tokenizer_fingerprint(lower)


# The bare sentencepiece file


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kind": "unigram"},
        {"remove_extra_whitespaces": False},
        {"add_dummy_prefix": False},
        {"byte_fallback": False, "vocab_size": 60, "normalization_rule_name": "nmt_nfkc", "bos_piece": "§§"},
        {"bos_id": -1, "pad_id": 3},
        {"kind": "unigram", "user_defined_symbols": ["<turn>"], "bos_id": 2, "eos_id": 1, "bos_piece": "<bos>"},
    ],
)
@pytest.mark.parametrize("place", [".", "tokenizer.model"])
def test_a_bare_file_is_read_as_sentencepiece_reads_it(settings: dict, place: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes(**settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    sentencepiece = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = load(tmp_path / place)
    bos = [id for id in [sentencepiece.bos_id()] if id >= 0]
    for text in [*AWKWARD, *TEXTS, "<turn>x", "a §§"]:
        ids = sentencepiece.encode(text)
        assert tokenizer(text)["input_ids"] == bos + ids
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert tokenizer.decode(ids) == sentencepiece.decode(ids)
        if sentencepiece.unk_id() not in ids:
            assert decode(tokenizer, bos + ids) == sentencepiece.decode(ids)
    assert tokenizer.eos_token_id == sentencepiece.eos_id()
    assert tokenizer.pad_token_id == (3 if settings.get("pad_id") == 3 else None)
    assert max(tokenizer.get_vocab().values()) + 1 == len(sentencepiece)


def test_what_describes_a_tokenizer_better_than_its_file_is_preferred(tmp_path: Path) -> None:
    place = fast(tmp_path / "model", "ab")
    (place / "tokenizer.model").write_bytes(sentencepiece_bytes())
    assert load(place).is_fast


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.model": b"no model"}, "a.model is not a sentencepiece model"),
        ({"a.model": b""}, "a.model is not a sentencepiece model"),
        ({"a.model": b"", "b.model": b""}, "several tokenizers: a.model, b.model"),
        ({"config.json": b'{"model_type": "llama"}'}, "cannot load the tokenizer"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(files: dict[str, bytes], said: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load(tmp_path)
    assert caught.value.fix
