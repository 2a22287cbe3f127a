"""What an MT encoder reads: the target text, tokenized by its own tokenizer as a text of the target language."""

import re
from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from flare_ds.config import SourceConfig
from flare_ds.exceptions import ConfigError
from flare_ds.registry import suggestion
from flare_ds.tasks.languages import NLLB_TAG
from flare_ds.texts import one_line

_FIX = "give an M2M100 or NLLB model: a directory written by save_pretrained, or a hub name this machine can reach"
_SENTENCE_END = re.compile(r"[.!?…:;。！？؟।॥][\"'”’»」』)\]]*$")
MT_TEXT_VERSION = 2
"""Raised whenever the encoder would read another text of the same row."""


def load_mt_tokenizer(source: SourceConfig) -> PreTrainedTokenizerBase:
    """Load the encoder's tokenizer, set to the target language.

    Raises:
        ConfigError: there is none, it does not know `source.mt_language`, or it makes ids that the encoder has no
            embedding for.
    """
    from transformers import AutoTokenizer  # imports torch, which worker processes do without

    from flare_ds.model_files.hub import revision
    from flare_ds.model_files.limits import check_tokenizer

    try:
        name = str(source.mt_encoder)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision(name), trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise unusable(source, error) from error
    known = language_tags(tokenizer)
    if not known:
        raise unusable(source, "its tokenizer has no language tags")
    if source.mt_language not in known:
        raise ConfigError(
            f"source.mt_language={source.mt_language!r} is no language of source.mt_encoder={source.mt_encoder!r}",
            fix=suggestion(str(source.mt_language), known),
        )
    check_tokenizer(tokenizer, str(source.mt_encoder), setting="source.mt_encoder")
    tokenizer.src_lang = source.mt_language
    return tokenizer


def mt_text(fields: Mapping[str, str]) -> str:
    """What the encoder reads of a row: its fields in the task's order, without the prompt around them.

    Each but the last ends a sentence, by a full stop if it does not already; a line break is a space to the tokenizers.
    """
    texts = [text.strip() for text in fields.values() if text.strip()]
    return " ".join([*map(_as_sentence, texts[:-1]), *texts[-1:]])


def _as_sentence(text: str) -> str:
    return text if _SENTENCE_END.search(text) else f"{text}."


def language_tags(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The languages of an MT tokenizer: M2M100 lists its own; NLLB's are special tokens such as `pol_Latn`."""
    listed = getattr(tokenizer, "lang_code_to_id", None)
    return set(listed) if listed else {token for token in tokenizer.all_special_tokens if NLLB_TAG.fullmatch(token)}


def unusable(source: SourceConfig, reason: object) -> ConfigError:
    """The error that the MT encoder a config names cannot be used."""
    said = one_line(str(reason)).rstrip(".")
    return ConfigError(f"source.mt_encoder={source.mt_encoder!r} cannot be used: {said}", fix=_FIX)
