"""Processes that translate batches, each with an engine and, where there is one, a GPU of its own."""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized

from flare_ds.config import TranslateConfig
from flare_ds.exceptions import HostError
from flare_ds.host import available_cores, visible_gpus
from flare_ds.model_files.hub import settle, settled
from flare_ds.processes import end_with_parent
from flare_ds.translation.batches import Batch
from flare_ds.translation.engines import ENGINES
from flare_ds.translation.worker import Probes, Worker


def enough_workers(translate: TranslateConfig, batches: int) -> int:
    """How many workers keep this machine busy: one a GPU or, with an engine that uses none, one a core."""
    uses_gpus = ENGINES.get(translate.engine).uses_gpus
    places = visible_gpus() if uses_gpus else available_cores()
    return max(1, min(places, batches))


def run_batches(
    batches: Sequence[Batch], probes: Probes, translate: TranslateConfig, workers: int | None
) -> Iterator[None]:
    """Translate batches; yields after each. One worker is this process itself; None: as many as keep it busy.

    Raises:
        ConfigError: see `Worker.run`.
        HostError: see `Worker.run`; or a worker died.
    """
    workers = workers or enough_workers(translate, len(batches))
    if workers == 1:
        yield from map(Worker(translate, 0, probes).run, batches)
        return
    context = multiprocessing.get_context("spawn")
    numbers = context.Value("i", 0)
    try:
        with ProcessPoolExecutor(workers, context, _begin, (translate, numbers, probes, settled())) as pool:
            yield from pool.map(_run, batches)
    except BrokenProcessPool as error:
        problem = f"a worker of translate.engine={translate.engine!r} died"
        fix = "if it was killed for memory, use fewer --workers or a smaller translate.batch_size; then run it again"
        raise HostError(problem, fix=fix) from error


_worker: Worker


def _begin(
    translate: TranslateConfig, numbers: "Synchronized[int]", probes: Probes, commits: Mapping[str, str]
) -> None:
    """Make this process a worker, which goes when the process that started it is killed."""
    global _worker
    for name, commit in commits.items():
        settle(name, commit)
    with numbers.get_lock():
        number, numbers.value = numbers.value, numbers.value + 1
    _worker = Worker(translate, number, probes)
    end_with_parent()


def _run(batch: Batch) -> None:
    _worker.run(batch)
