"""ctranslate2: NLLB or M2M100 converted for CTranslate2, several times faster, with the same tokenizer.

It reads a model as ct2-transformers-converter writes it, with the files of its tokenizer beside it. NLLB's are
tokenizer.json and tokenizer_config.json; M2M100's are that one, vocab.json, sentencepiece.bpe.model and
special_tokens_map.json.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flare_ds.config import TranslateConfig
from flare_ds.exceptions import ConfigError, HostError
from flare_ds.host import visible_gpus
from flare_ds.translation.engines.base import ENGINES, Direction, Engine, Said, missing_package
from flare_ds.translation.engines.nllb import Nllb, load_tokenizer

_FIX = (
    f"convert a model: ct2-transformers-converter --model {TranslateConfig().model} --output_dir DIR "
    "--copy_files tokenizer.json tokenizer_config.json; and set translate.model=DIR"
)
_CUDA_12 = (
    "pip install nvidia-cublas-cu12, and put the folder of its libcublas.so.12 into LD_LIBRARY_PATH (torch may bring "
    "another CUDA); or use translate.engine=nllb, or translate on the CPU (DS_ACCELERATOR=cpu)"
)


class CTranslate2(Engine):
    """A converted model, as precise as it was converted."""

    uses_gpus = True

    def __init__(self, translate: TranslateConfig, direction: Direction, *, worker: int) -> None:
        import ctranslate2

        self._tokenizer, target_id = load_tokenizer(translate, direction)
        self._target = self._tokenizer.convert_ids_to_tokens(target_id)
        gpus = min(visible_gpus(), ctranslate2.get_cuda_device_count())
        where = {"device": "cuda", "device_index": worker % gpus} if gpus else {"device": "cpu"}
        self._translator = ctranslate2.Translator(translate.model, **where)
        self._settings = {"beam_size": translate.beams, "max_decoding_length": translate.max_new_tokens}

    @classmethod
    def identity(cls, translate: TranslateConfig, direction: Direction) -> dict[str, object]:
        """The converted model's content, and how it decodes."""
        if not (Path(translate.model) / "model.bin").is_file():
            raise ConfigError(f"translate.model={translate.model!r} holds no model.bin of CTranslate2", fix=_FIX)
        try:
            import ctranslate2  # noqa: F401
        except ImportError as error:
            raise missing_package("ctranslate2", "ctranslate2") from error
        return Nllb.identity(translate, direction)

    def translate(self, sentences: Sequence[str]) -> list[Said | None]:
        """Translate one batch.

        Raises:
            HostError: the CUDA that the engine was built for is not there.
        """
        from flare_ds.tokenizing.plain_text import encode_texts

        tokens = [self._tokenizer.convert_ids_to_tokens(ids) for ids in encode_texts(self._tokenizer, sentences)]
        prefix = [[self._target]] * len(tokens)
        try:
            results = self._translator.translate_batch(
                tokens, target_prefix=prefix, return_end_token=True, **self._settings
            )
        except RuntimeError as error:
            if "libcublas" not in str(error):
                raise
            raise HostError(f"translate.engine=ctranslate2 has no CUDA 12: {error}", fix=_CUDA_12) from error
        said = [result.hypotheses[0][1:] for result in results]  # behind the tag, which may be no special token
        ids: Any = [self._tokenizer.convert_tokens_to_ids(words) for words in said]
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        eos, unknown = self._tokenizer.eos_token, self._tokenizer.unk_token
        return [
            Said(text, cut_off=spoken[-1:] != [eos], unknown=unknown in (*read, *spoken))
            for text, read, spoken in zip(texts, tokens, said, strict=True)
        ]


ENGINES.add("ctranslate2", CTranslate2)
