"""A tokenizer that is one sentencepiece file and nothing else, as Llama 2 and Gemma were first published.

transformers converts such a file without what its header says: the space in front of a text and the bos are lost, so
the first token of each prompt would not be the one the model knows. Here sentencepiece itself makes the ids.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from flare_ds.exceptions import ConfigError

_DESCRIBED_BY = ("tokenizer.json", "tokenizer_config.json")
_SPECIAL = ("unk", "bos", "eos", "pad")


class SentencePieceTokenizer(SentencePieceBackend):
    """Text to ids exactly as sentencepiece does it; text that looks like a special token is just text."""

    def __init__(self, vocab_file: str) -> None:
        pieces = SentencePieceProcessor(model_file=vocab_file)
        ids = {name: getattr(pieces, f"{name}_id")() for name in _SPECIAL}
        special = {f"{name}_token": pieces.id_to_piece(number) for name, number in ids.items() if number >= 0}
        pattern = "bos" if "bos_token" in special else "none"
        super().__init__(vocab_file=vocab_file, special_tokens_pattern=pattern, split_special_tokens=True, **special)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self.sp_model.id_to_piece(self.sp_model.encode(text))

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text that pieces stand for, bytes put together."""
        return self.sp_model.decode(tokens)

    def save_pretrained(self, save_directory: str | os.PathLike[Any], *_: Any, **__: Any) -> tuple[str, ...]:
        """Save what it was loaded from: the file alone."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        return self.save_vocabulary(str(save_directory))


def bare_model_file(base: str) -> Path | None:
    """The sentencepiece file, where a base is one, or is a directory in which nothing else describes a tokenizer.

    Raises:
        ConfigError: the directory holds several.
    """
    path = Path(base)
    if path.is_file() and path.suffix == ".model":
        return path
    if any((path / name).is_file() for name in _DESCRIBED_BY):
        return None
    files = sorted(path.glob("*.model")) if path.is_dir() else []
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ConfigError(f"model.base={base!r} holds several tokenizers: {names}", fix="leave one of them there")
    return files[0] if files else None


def load_model_file(path: Path) -> SentencePieceTokenizer:
    """Load a tokenizer from a sentencepiece file.

    Raises:
        ConfigError: it is not one.
    """
    try:
        return SentencePieceTokenizer(str(path))
    except (OSError, RuntimeError) as error:
        problem = f"{path} is not a sentencepiece model: {error}"
        raise ConfigError(problem, fix="give a file that sentencepiece wrote, or a tokenizer.json beside it") from error
