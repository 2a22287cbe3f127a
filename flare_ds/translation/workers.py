"""Processes that translate batches, each with an engine and, where there is one, a GPU of its own."""

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized

import torch

from flare_ds.config import TranslateConfig
from flare_ds.exceptions import FlareError, HostError
from flare_ds.texts import one_line
from flare_ds.translation.batches import Batch
from flare_ds.translation.engines import ENGINES, Direction, Engine, Said
from flare_ds.worker_process import available_cores, end_with_parent


class Worker:
    """Translates batches one by one; keeps the engine of one direction.

    Args:
        translate: which engine, and its settings.
        number: of this worker.
    """

    def __init__(self, translate: TranslateConfig, number: int) -> None:
        self._translate, self._number = translate, number
        self._direction: Direction | None = None
        self._engine: Engine
        self._known: str | None = None

    def run(self, batch: Batch) -> None:
        """Translate a batch and keep it.

        Raises:
            ConfigError: the engine cannot be used so.
            HostError: it lacks something, or it broke down.
        """
        if batch.direction != self._direction:
            engine = ENGINES.get(self._translate.engine)
            self._engine = engine(self._translate, batch.direction, worker=self._number)
            self._direction, self._known = batch.direction, None
        batch.write(self._translate_all(batch.segments))

    def _translate_all(self, segments: Sequence[str]) -> list[Said | None]:
        try:
            translations = self._try(segments)
        except FlareError:
            raise
        except Exception as error:
            _say(f"{len(segments)} sentences failed together ({_first_line(error)}); each is tried alone")
            translations = [self._alone(segment) for segment in segments]
            if not any(said and said.text for said in translations):
                self._check_engine(error)
        done = (segment for segment, said in zip(segments, translations, strict=True) if said and said.text)
        self._known = next(done, self._known)
        return translations

    def _try(self, segments: Sequence[str]) -> list[Said | None]:
        translations = self._engine.translate(segments)
        if len(translations) != len(segments):
            raise ValueError(f"{len(translations)} translations of {len(segments)} sentences")
        return [said and Said(one_line(said.text), said.cut_off) for said in translations]

    def _alone(self, segment: str) -> Said | None:
        try:
            return self._try([segment])[0]
        except FlareError:
            raise
        except Exception as error:
            _say(f"no translation of {segment!r}: {_first_line(error)}")
            return None

    def _check_engine(self, error: Exception) -> None:
        """Tell sentences that cannot be translated from an engine that broke down: can it still do what it could?"""
        if self._known is not None and not ((said := self._alone(self._known)) and said.text):
            problem = f"translate.engine={self._translate.engine!r} broke down: {_first_line(error)}"
            raise HostError(problem, fix="run the same command again; it goes on from here") from error


def enough_workers(translate: TranslateConfig, batches: int) -> int:
    """How many workers keep this machine busy: one a GPU or, with an engine that uses none, one a core."""
    uses_gpus = ENGINES.get(translate.engine).uses_gpus
    places = torch.cuda.device_count() if uses_gpus else available_cores()
    return max(1, min(places, batches))


def run_batches(batches: Sequence[Batch], translate: TranslateConfig, workers: int | None) -> Iterator[None]:
    """Translate batches; yields after each. One worker is this process itself; None: as many as keep it busy.

    Raises:
        ConfigError: see `Worker.run`.
        HostError: see `Worker.run`; or a worker died.
    """
    workers = workers or enough_workers(translate, len(batches))
    if workers == 1:
        yield from map(Worker(translate, 0).run, batches)
        return
    context = multiprocessing.get_context("spawn")
    numbers = context.Value("i", 0)
    try:
        with ProcessPoolExecutor(workers, context, _begin, (translate, numbers)) as pool:
            yield from pool.map(_run, batches)
    except BrokenProcessPool as error:
        problem = f"a worker of translate.engine={translate.engine!r} died"
        fix = "if it was killed for memory, use fewer --workers or a smaller translate.batch_size; then run it again"
        raise HostError(problem, fix=fix) from error


_worker: Worker


def _begin(translate: TranslateConfig, numbers: "Synchronized[int]") -> None:
    """Make this process a worker, which goes when the process that started it is killed."""
    global _worker
    with numbers.get_lock():
        number, numbers.value = numbers.value, numbers.value + 1
    _worker = Worker(translate, number)
    end_with_parent()


def _run(batch: Batch) -> None:
    _worker.run(batch)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _say(message: str) -> None:
    print(f"translate: {message}", file=sys.stderr)
