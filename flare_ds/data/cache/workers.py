"""Encoding chunks of rows in order, in this process or in several; only a few chunks are held at a time."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context

from flare_ds.data.cache.rows import EncodedRows, RowEncoder
from flare_ds.data.parallel import ParallelRow
from flare_ds.exceptions import HostError
from flare_ds.host import available_cores
from flare_ds.processes import end_with_parent
from flare_ds.tasks.base import Split

Chunk = Sequence[ParallelRow]
Encode = Callable[[Split, Iterable[Chunk]], Iterator[tuple[Chunk, EncodedRows]]]


_ROWS_A_WORKER = 20_000
"""Fewer, and starting a process takes longer than it saves."""


def enough_workers(rows: int) -> int:
    """How many processes are worth starting on the cores this one may use."""
    return max(1, min(available_cores(), rows // _ROWS_A_WORKER))


@contextmanager
def encode_in(workers: int, encoder: RowEncoder) -> Iterator[Encode]:
    """Yield a function that encodes chunks of a split: each with its encoding, in the order they came.

    Args:
        workers: fresh processes that share the work; 1: this process.
        encoder: sent once to each of them.

    Raises:
        HostError: one of them was killed.
    """
    if workers == 1:
        yield lambda split, chunks: ((chunk, encoder.encode(split, chunk)) for chunk in chunks)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (encoder,)) as pool:
        try:
            yield lambda split, chunks: _in_order(pool, 2 * workers, split, chunks)
        except BrokenProcessPool as error:
            problem = f"one of the {workers} processes that tokenize was killed, perhaps because memory ran out"
            fix = "run `flare-ds prepare CONFIG --workers 1` first; in your own script, call flare_ds "
            raise HostError(problem, fix=f"{fix}under `if __name__ == '__main__':`") from error


def _in_order(
    pool: ProcessPoolExecutor, most_waiting: int, split: Split, chunks: Iterable[Chunk]
) -> Iterator[tuple[Chunk, EncodedRows]]:
    """Unlike `pool.map`, read chunks only as they are needed."""
    waiting: deque[tuple[Chunk, Future[EncodedRows]]] = deque()
    for chunk in chunks:
        waiting.append((chunk, pool.submit(_encode_in_worker, split, chunk)))
        if len(waiting) > most_waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


_worker_encoder: RowEncoder  # of a worker process; sent to it once, as a tokenizer can be tens of megabytes


def _start_worker(encoder: RowEncoder) -> None:
    global _worker_encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker_encoder = encoder
    end_with_parent()


def _encode_in_worker(split: Split, chunk: Chunk) -> EncodedRows:
    return _worker_encoder.encode(split, chunk)
