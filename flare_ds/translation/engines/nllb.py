"""nllb: NLLB-200, or M2M100, through transformers; on a GPU in bfloat16 where there is one."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from flare_ds.config import TranslateConfig
from flare_ds.exceptions import ConfigError
from flare_ds.host import visible_gpus
from flare_ds.registry import suggestion
from flare_ds.tasks.languages import codes_of
from flare_ds.translation.engines.base import ENGINES, Direction, Engine, Said

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIX = "set translate.model to an NLLB or M2M100 model: a saved directory, or a hub name this machine can reach"


_VERSION = 2
"""Raised whenever the same model would say something else, or be told other marks."""


class Nllb(Engine):
    """A whole model on one device; sentences of a batch are padded to the longest."""

    uses_gpus = True

    def __init__(self, translate: TranslateConfig, direction: Direction, *, worker: int) -> None:
        import torch

        from flare_ds.model_files.complete import load_seq2seq

        gpus = visible_gpus()
        self._device = torch.device("cuda", worker % gpus) if gpus else torch.device("cpu")
        self._tokenizer, self._target_id = load_tokenizer(translate, direction)
        dtype = torch.bfloat16 if gpus else torch.float32
        try:
            model = load_seq2seq("translate.model", translate.model, dtype)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(f"translate.model={translate.model!r} cannot be loaded: {error}", fix=FIX) from error
        self._model = model.to(self._device)
        self._settings = {"num_beams": translate.beams, "max_new_tokens": translate.max_new_tokens}

    @classmethod
    def identity(cls, translate: TranslateConfig, direction: Direction) -> dict[str, object]:
        """The model's content, and how it decodes."""
        from flare_ds.model_files.fingerprint import file_states, model_fingerprint

        states = file_states(Path(translate.model))
        tokenizer = _tokenizer_sha256(translate, direction, states)  # refuses a language before hours are spent
        return {
            "model": model_fingerprint(translate.model),
            "tokenizer_sha256": tokenizer,
            "version": _VERSION,
            "beams": translate.beams,
            "max_new_tokens": translate.max_new_tokens,
        }

    def translate(self, sentences: Sequence[str]) -> list[Said | None]:
        """Translate one batch."""
        import torch

        from flare_ds.tokenizing.plain_text import encode_texts

        rows = {"input_ids": encode_texts(self._tokenizer, sentences)}
        inputs = self._tokenizer.pad(rows, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            ids = self._model.generate(**inputs, forced_bos_token_id=self._target_id, do_sample=False, **self._settings)
        said = ids[:, 2:].tolist()  # behind the eos that it begins with and the tag, which may be no special token
        texts = self._tokenizer.batch_decode(said, skip_special_tokens=True)
        eos, unknown = self._tokenizer.eos_token_id, self._tokenizer.unk_token_id
        return [
            Said(text, cut_off=eos not in spoken, unknown=unknown in (*read, *spoken))
            for text, read, spoken in zip(texts, rows["input_ids"], said, strict=True)
        ]


@lru_cache(maxsize=16)
def _tokenizer_sha256(translate: TranslateConfig, direction: Direction, _states: object) -> str:
    """The checksum of a tokenizer while its files look so: it is asked for once a split, and takes seconds to load."""
    from flare_ds.tokenizing.fingerprint import tokenizer_fingerprint

    tokenizer, _ = load_tokenizer(translate, direction)
    return tokenizer_fingerprint(tokenizer)


def load_tokenizer(translate: TranslateConfig, direction: Direction) -> "tuple[PreTrainedTokenizerBase, int]":
    """Load the tokenizer, set to the language translated from.

    Returns:
        The tokenizer, and the id a translation begins with: the tag of the language translated into.

    Raises:
        ConfigError: there is none, or it does not know the languages.
    """
    from transformers import AutoTokenizer

    from flare_ds.model_files.hub import revision

    name = translate.model
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision(name), trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"translate.model={translate.model!r} has no tokenizer: {error}", fix=FIX) from error
    tokenizer.src_lang, target = (_name(tokenizer, translate, tag) for tag in direction)
    lang_tokens = getattr(tokenizer, "lang_code_to_token", {})  # M2M100 writes `pl` as `__pl__`
    target_id = tokenizer.convert_tokens_to_ids(lang_tokens.get(target, target))
    assert isinstance(target_id, int)
    return tokenizer, target_id


def _name(tokenizer: "PreTrainedTokenizerBase", translate: TranslateConfig, tag: str) -> str:
    """What the model calls a language: NLLB by its tag, M2M100 by its usual code."""
    from flare_ds.tokenizing.mt_tokens import language_tags

    known = language_tags(tokenizer)
    for name in (tag, *codes_of(tag)):
        if name in known:
            return name
    raise ConfigError(
        f"translate.model={translate.model!r} knows no {tag}", fix=suggestion(tag, known) if known else FIX
    )


ENGINES.add("nllb", Nllb)
