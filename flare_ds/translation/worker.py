"""One worker: translates batches with an engine of its own, and writes nothing that a broken engine says.

That a sentence cannot be translated is believed of an engine alone that translates another one after it. One that is
broken, from its start or from some sentence on, gives up whatever it is asked, and faster than the others.
"""

import errno
import gc
import sys
from collections.abc import Mapping, Sequence

import torch

from flare_ds.config import TranslateConfig
from flare_ds.exceptions import FlareError, HostError
from flare_ds.texts import one_line
from flare_ds.translation.batches import Batch
from flare_ds.translation.engines import ENGINES, Direction, Engine, Said

Probes = Mapping[Direction, Sequence[str]]
"""Some sentences of each direction, by which an engine that has translated nothing yet shows that it works."""


_AGAIN = (
    "run the same command again: it goes on from here; if it stays so, use fewer --workers, or other GPUs "
    "(CUDA_VISIBLE_DEVICES; worker k uses the k-th, from 0)"
)
_SMALLER = "; a smaller translate.batch_size is faster"


class Worker:
    """Translates batches one by one; keeps the engine of one direction.

    Args:
        translate: which engine, and its settings.
        number: of this worker.
        probes: of all directions; of one that is not among them there are none.
        fix: of an engine that is broken.
    """

    def __init__(self, translate: TranslateConfig, number: int, probes: Probes, *, fix: str = _AGAIN) -> None:
        self._translate, self._number, self._probes, self._fix = translate, number, probes, fix
        self._direction: Direction | None = None
        self._engine: Engine | None = None
        self._translatable: Sequence[str]

    def run(self, batch: Batch) -> None:
        """Translate a batch and keep it; raises what `translate` does."""
        batch.write(self.translate(batch.direction, batch.segments))

    def translate(self, direction: Direction, segments: Sequence[str]) -> list[Said | None]:
        """What the engine says of some sentences; None: it has no translation of that one.

        Raises:
            ConfigError: the engine cannot be used so.
            HostError: it lacks something, or it is broken.
        """
        if direction != self._direction:
            self._open(direction)
        return self._translate_all(segments)

    def _open(self, direction: Direction) -> None:
        self._direction = self._engine = None  # two models at once may be more than there is room for
        _free_memory()
        try:
            self._engine = ENGINES.get(self._translate.engine)(self._translate, direction, worker=self._number)
        except FlareError:
            raise
        except Exception as error:
            raise self._broken("does not start", _first_line(error)) from error
        self._direction, self._translatable = direction, self._probes.get(direction, ())

    def _translate_all(self, segments: Sequence[str]) -> list[Said | None]:
        why = ""
        try:
            translations = last = self._try(segments)
        except FlareError:
            raise
        except Exception as error:
            why, smaller = _first_line(error), _SMALLER if _lacks_memory(error) else ""
        if why:  # the error is gone, and with it the tensors that its traceback held
            _free_memory()
            _say(f"{len(segments)} sentences failed together ({why}); each is tried alone{smaller}")
            translations = [self._alone(segment) for segment in segments]
            last = translations[-1:]
        if not (any(map(_is_text, last)) or any(_is_text(self._alone(sentence)) for sentence in self._translatable)):
            raise self._broken("translates nothing", why)
        return translations

    def _try(self, segments: Sequence[str]) -> list[Said | None]:
        assert self._engine is not None
        found = self._engine.translate(segments)
        if len(found) != len(segments):
            raise ValueError(f"{len(found)} translations of {len(segments)} sentences")
        translations = [said and said._replace(text=one_line(said.text)) for said in found]
        done = [segment for segment, said in zip(segments, translations, strict=True) if _is_text(said)]
        self._translatable = done[:1] or self._translatable
        return translations

    def _alone(self, segment: str) -> Said | None:
        try:
            return self._try([segment])[0]
        except FlareError:
            raise
        except Exception as error:
            if _lacks_memory(error):
                raise self._broken("has no memory for a single sentence", _first_line(error)) from error
            _say(f"no translation of {segment!r}: {_first_line(error)}")
            return None

    def _broken(self, how: str, why: str) -> HostError:
        return HostError(
            f"translate.engine={self._translate.engine!r} {how} in worker {self._number}{': ' if why else ''}{why}",
            fix=self._fix,
        )


def _free_memory() -> None:
    """Give back to the GPU what torch keeps for later, all of it in pieces of other sizes."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def _is_text(said: Said | None) -> bool:
    return bool(said and said.text)


def _lacks_memory(error: Exception) -> bool:
    """Whether the machine is to blame; CTranslate2 and allocators tell it in words alone."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    return known or "out of memory" in str(error).lower()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _say(message: str) -> None:
    print(f"translate: {message}", file=sys.stderr)
