"""The token cache of many short pairs: opening it, reading it against Arrow, building it; prints JSON.

    python benchmarks/cache.py [--rows 1000000] [--build-rows 20000] [--workers 1 2] [--reader-rows 100000]
                               [--load-rows 200000]

The large cache holds random tokens, written as a build writes them but without reading and tokenizing any text.

`open`: the median over processes of the time to open the cache and its largest split and to read a row, and of the
resident memory that this adds. `random` and `epoch`: microseconds of processor time a row to read tokens and label
of rows drawn at random (the best of five rounds), and of all rows in order, from the cache and from the same rows in a
memory-mapped Arrow table of `datasets`; a ratio is against the faster of Arrow's formats (plain gives lists), and
in order Arrow hands out a thousand rows at a time, the cache one. `build`: rows a second of a whole `prepare_cache`,
from rows to files, for each number of workers (whose start is most of a short build), and how far the memory of the
calling process rose; likewise of writing the large cache. `readers`: wall time of four processes that each read as many
rows at random, at once: `cold`, with none of the files in the page cache, and `warm`, right behind that.
`launch`: what finding the large cache again takes a run that asks for it, as `open`.
`load`: seconds to read, join and split rows of text, and to take their checksum, and the most memory that took a row
(without pages of mapped files), each in a process of its own.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, load_from_disk
from memory import anonymous_memory, peak_memory, resident_memory
from world import WORDS, Pairs, pairs_config, word_tokenizer

from flare_ds.checksums import json_sha256
from flare_ds.config import Config
from flare_ds.data.cache import CacheSplit, Manifest, open_cache, prepare_cache, remembered
from flare_ds.data.cache.format import FORMAT, FORMAT_VERSION, MANIFEST, Section, SplitSummary
from flare_ds.data.cache.key import asked_fields, rows_fingerprint
from flare_ds.data.cache.requests import remember
from flare_ds.data.cache.rows import EncodedRows, EncodedStream
from flare_ds.data.cache.split_writer import SplitWriter
from flare_ds.data.parallel import ParallelRow, Side, load_parallel
from flare_ds.published import publishing, write_manifest
from flare_ds.tasks.load import task_of

STREAMS = ("source", "target")
FORMATS = {"plain": None, "numpy": "numpy"}
ARROW_BATCH = 1000
RANDOM_READS = {"cache": 20_000, "arrow": 2_000}
ROUNDS = 5
CHUNK_ROWS = 256
READERS = 4


def in_child(work: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """Do something in a process of its own, for whose imports nobody waits any more."""
    forked = multiprocessing.get_context("fork")
    receiver, sender = forked.Pipe(duplex=False)
    child = forked.Process(target=lambda: sender.send(work(*arguments)))
    child.start()
    sender.close()
    found: dict[str, float] = receiver.recv()
    child.join()
    return found


def measure_build(directory: Path, rows: int, workers: int) -> dict[str, float]:
    """One build."""
    with peak_memory() as found:
        began = time.perf_counter()
        prepare_cache(pairs_config(directory, method="lora", data_dir=str(rows)), word_tokenizer(), workers=workers)
        seconds = time.perf_counter() - began
    rate = rows / seconds
    per_worker = {"rows_per_second": rate, "rows_per_second_per_worker": rate / workers}
    return {"rows": rows, "seconds": seconds, **per_worker, **found}


def measure_load(rows: int) -> dict[str, float]:
    """Reading the rows of a build."""
    config = large_config(Path("unused"), rows)
    began = time.perf_counter()
    with anonymous_memory() as found:
        data = load_parallel(task_of(config.task), config.task)
    loaded = time.perf_counter()
    rows_fingerprint(data)
    seconds = {"load_seconds": loaded - began, "checksum_seconds": time.perf_counter() - loaded}
    return {"rows": rows, **seconds, "peak_bytes_a_row": found["peak_bytes"] / rows}


def large_config(place: Path, rows: int) -> Config:
    """Settings that ask for the large cache."""
    return pairs_config(place, method="lora", data_dir=str(rows))


def write_large(directory: Path, rows: int) -> dict[str, float]:
    """A cache of that many rows of random tokens; found again by `large_config`."""
    with peak_memory() as found, publishing(directory, open_cache, elsewhere="") as place:
        began = time.perf_counter()
        dtypes = dict.fromkeys(STREAMS, np.dtype("<u2"))
        config = large_config(directory.parent.parent, rows)
        with SplitWriter(place, "train", dtypes, task_of(config.task), answers_source=False) as writer:
            for start in range(0, rows, CHUNK_ROWS):
                writer.append(*random_rows(range(start, min(start + CHUNK_ROWS, rows))))
            summary, sections = writer.finish()
        manifest = manifest_of(summary, sections, asked_fields(config, task_of(config.task)))
        write_manifest(place / MANIFEST, manifest.model_dump(mode="json"))
        seconds = time.perf_counter() - began
    return {"rows": rows, "seconds": seconds, "rows_per_second": rows / seconds, **found}


def random_rows(numbers: range) -> tuple[list[ParallelRow], EncodedRows]:
    """Rows of prompts of 6 to 21 tokens and answers of two."""
    draw = np.random.default_rng(numbers.start)
    streams = {}
    for stream in STREAMS:
        lengths_n = draw.integers(6, 22, len(numbers)).astype(np.int32)
        tokens_t = draw.integers(0, len(WORDS), lengths_n.sum() + 2 * len(numbers)).astype(np.uint16)
        streams[stream] = EncodedStream(tokens_t, lengths_n + 2, lengths_n, truncated=0)
    side = Side({"text": ""})
    rows = [ParallelRow(str(number), number % 2, (side,), side) for number in numbers]
    return rows, EncodedRows(np.ones(len(rows), np.int64), streams, {})


def manifest_of(summary: SplitSummary, sections: dict[str, Section], asked: dict[str, Any]) -> Manifest:
    """The manifest of the large cache."""
    fields = asked | {"tokenizer_sha256": ""}
    return Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        key=json_sha256(fields),
        fields=fields,
        streams=dict(zip(STREAMS, Pairs.languages, strict=True)),
        labels=[*Pairs.labels],
        label_tokens=[[4], [5]],
        prefix_ids=[],
        newline_ids=[],
        pad_id=1,
        eos_id=1,
        vocabulary_size=len(WORDS),
        counts={"rows_read": summary.rows},
        splits={"train": summary},
        sections=sections,
    )


def measure_open(path: Path) -> dict[str, float]:
    """One opening."""
    before, began = resident_memory(), time.perf_counter()
    read_row(open_cache(path).split("train"), 0)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rise_bytes": resident_memory() - before}


def measure_launch(config: Config) -> dict[str, float]:
    """A run that finds its cache."""
    before, began = resident_memory(), time.perf_counter()
    cache = remembered(config)
    seconds = time.perf_counter() - began
    assert cache is not None
    return {"seconds": seconds, "rise_bytes": resident_memory() - before}


def measure_readers(path: Path, rows: int) -> dict[str, float]:
    """Seconds until the last of the readers is done, with cold and with warm files."""
    for file in filter(Path.is_file, path.rglob("*")):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # dirty pages cannot be dropped
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    found = {name: slowest_reader(path, rows) for name in ("cold", "warm")}
    return found | {"cold/warm": found["cold"] / found["warm"]}


def slowest_reader(path: Path, rows: int) -> float:
    """Wall time of readers that begin together, each a process with the files opened."""
    forked = multiprocessing.get_context("fork")
    begin, seconds = forked.Barrier(READERS), forked.SimpleQueue()
    readers = [forked.Process(target=read_rows, args=(path, rows, seed, begin, seconds)) for seed in range(READERS)]
    for reader in readers:
        reader.start()
    times = [seconds.get() for _ in readers]
    for reader in readers:
        reader.join()
    return max(times)


def read_rows(path: Path, rows: int, seed: int, begin: Barrier, seconds: "SimpleQueue[float]") -> None:
    """One of the readers."""
    split = open_cache(path).split("train")
    places = np.random.default_rng(seed).integers(0, len(split), rows).tolist()
    begin.wait()
    began = time.perf_counter()
    for place in places:
        read_row(split, place)
    seconds.put(time.perf_counter() - began)


def read_row(split: CacheSplit, row: int) -> tuple[Any, ...]:
    """What training reads of a row."""
    source = split.prompt("source", row), split.answer("source", row)
    return *source, split.prompt("target", row), split.answer("target", row), split.labels[row]


def write_arrow(split: CacheSplit, directory: Path) -> None:
    """The same rows as a table: of each stream the list of its tokens and how many of them are the prompt."""
    columns: dict[str, Any] = {"label": pa.array(split.labels)}
    for stream in STREAMS:
        pieces = [read(stream, row) for row in range(len(split)) for read in (split.prompt, split.answer)]
        offsets = np.concatenate([[0], np.cumsum(split.lengths(stream))]).astype(np.int32)
        columns[stream] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(pieces)))
        columns[f"{stream}_prompt_length"] = pa.array(split.prompt_lengths(stream))
    Dataset(pa.table(columns)).save_to_disk(directory, max_shard_size="100GB")


def microseconds_a_row(read: Callable[[int], object], rows: Iterable[int]) -> float:
    """Read rows one by one."""
    rows = list(rows)
    began = time.process_time()
    for row in rows:
        read(row)
    return 1e6 * (time.process_time() - began) / len(rows)


def microseconds_in_batches(table: Dataset) -> float:
    """Read all rows in order."""
    began = time.process_time()
    for batch in table.iter(ARROW_BATCH):
        for _ in zip(*(batch[stream] for stream in STREAMS), batch["label"], strict=True):
            pass
    return 1e6 * (time.process_time() - began) / len(table)


def measure_reads(split: CacheSplit, directory: Path) -> dict[str, Any]:
    """Random access and an epoch, from the cache and from Arrow."""
    write_arrow(split, directory)
    tables = {name: load_from_disk(str(directory)).with_format(kind) for name, kind in FORMATS.items()}
    check_equal(split, tables["plain"])
    rounds = [read_at_random(split, tables, seed) for seed in range(ROUNDS)]
    at_random = {name: min(times[name] for times in rounds) for name in ("cache", *tables)}
    in_order = {name: microseconds_in_batches(table) for name, table in tables.items()}
    return {
        "rows": len(split),
        "random": compare(at_random.pop("cache"), at_random),
        "epoch": compare(microseconds_a_row(partial(read_row, split), range(len(split))), in_order),
    }


def read_at_random(split: CacheSplit, tables: dict[str, Dataset], seed: int) -> dict[str, float]:
    """One round: the cache and each of the tables."""
    draw = np.random.default_rng(seed)
    places = {name: draw.integers(0, len(split), number).tolist() for name, number in RANDOM_READS.items()}
    cache = microseconds_a_row(partial(read_row, split), places["cache"])
    return {"cache": cache} | {
        name: microseconds_a_row(table.__getitem__, places["arrow"]) for name, table in tables.items()
    }


def check_equal(split: CacheSplit, table: Dataset) -> None:
    """Both hold the same rows."""
    assert len(split) == len(table)
    for row in range(0, len(split), max(len(split) // 100, 1)):
        for stream in STREAMS:
            assert [*split.prompt(stream, row), *split.answer(stream, row)] == table[row][stream]


def compare(cache: float, arrow: dict[str, float]) -> dict[str, Any]:
    """Times, and how many times faster the cache is than the faster format."""
    best = min(arrow, key=arrow.__getitem__)
    return {"cache_us": cache, "arrow_us": arrow, "fastest_arrow": best, "arrow/cache": arrow[best] / cache}


def main() -> None:
    """Build, open and read, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the cache that is opened and read")
    parser.add_argument("--build-rows", type=int, default=20_000, help="of those that are built from rows of text")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="processes of each of these builds")
    parser.add_argument("--openings", type=int, default=5, help="how often the large cache is opened")
    parser.add_argument("--reader-rows", type=int, default=100_000, help="rows that each of the readers reads")
    parser.add_argument("--load-rows", type=int, nargs="+", default=[200_000], help="of those that are only read")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        large = Path(place, "cache", "large")
        builds = {"large": in_child(write_large, large, options.rows)}
        openings = [in_child(measure_open, large) for _ in range(options.openings)]
        readers = measure_readers(large, options.reader_rows)
        config = large_config(Path(place), options.rows)
        remember(config, open_cache(large).key, [])
        launches = [in_child(measure_launch, config) for _ in range(options.openings)]
        for workers in options.workers:
            at = Path(place, str(workers))
            builds[f"{workers} workers"] = in_child(measure_build, at, options.build_rows, workers)
        loads = [in_child(measure_load, rows) for rows in options.load_rows]
        reads = measure_reads(open_cache(large).split("train"), Path(place, "arrow"))  # last: it starts threads
    found = {"open": medians(openings), "launch": medians(launches), "readers": readers}
    print(json.dumps(found | reads | {"build": builds, "load": loads}, indent=2))


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of each quantity."""
    return {name: median(one[name] for one in runs) for name in runs[0]}


if __name__ == "__main__":
    main()
