"""Building a cache: every row is tokenized once and its tokens go to disk as they come; no split is ever held whole."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from flare_ds.checksums import json_sha256
from flare_ds.config import Config
from flare_ds.data.cache.format import ELSEWHERE, FORMAT, FORMAT_VERSION, MANIFEST, Manifest, Section, SplitSummary
from flare_ds.data.cache.key import differences, key_fields
from flare_ds.data.cache.reader import open_cache
from flare_ds.data.cache.requests import remember
from flare_ds.data.cache.rows import RowEncoder
from flare_ds.data.cache.split_writer import SplitWriter
from flare_ds.data.cache.workers import Chunk, Encode, encode_in, enough_workers
from flare_ds.data.parallel import ParallelData, ParallelRow, load_parallel
from flare_ds.exceptions import CacheError, DataError
from flare_ds.files import disk_errors
from flare_ds.progress import bar
from flare_ds.published import publishing, write_manifest
from flare_ds.tasks.load import task_of
from flare_ds.tokenizing.mt_tokens import load_mt_tokenizer

_CHUNK_ROWS, _CHUNK_CHARACTERS = 256, 2**21


def prepare_cache(config: Config, tokenizer: PreTrainedTokenizerBase, *, workers: int | None = None) -> Path:
    """Find the cache of a config, or build it.

    Args:
        config: its `task`, `translate` and `cache_dir` decide what is built and where; so does an MT encoder.
        tokenizer: of the base model.
        workers: processes that tokenize; None: as many as have enough to do. The files do not depend on it.

    Returns:
        The cache directory.

    Raises:
        ConfigError: no such task, or the MT encoder cannot be used.
        DataError: the data cannot be read, no prompt can be made to fit, or label words cannot be told apart.
        CacheError: the directory of this cache holds another one.
        HostError: the disk is full, `cache_dir` is not writable, or a worker was killed.
    """
    data = load_parallel(task_of(config.task), config.task, config.translate)
    directory = build_cache(config, data, tokenizer, workers=workers)
    remember(config, open_cache(directory).key, data.translations)
    return directory


def build_cache(
    config: Config, data: ParallelData, tokenizer: PreTrainedTokenizerBase, *, workers: int | None = None
) -> Path:
    """Find the cache of some rows, read already, or build it; see `prepare_cache`."""
    task = task_of(config.task)
    for split, rows in data.splits.items():
        _check_has_rows(config, split, len(rows), data.counts)
    fields = key_fields(config, task, data, tokenizer)
    sources = "+".join(config.task.source_languages)
    name = f"{task.name}-{sources}-{config.task.target_language}-{json_sha256(fields)[:16]}"
    directory = Path(config.cache_dir) / name
    if not _is_ready(directory, fields):
        mt_tokenizer = load_mt_tokenizer(config.source) if config.caches_mt else None
        encoder = RowEncoder(task, tokenizer, config, mt_tokenizer)
        workers = workers or enough_workers(sum(map(len, data.splits.values())))
        with publishing(directory, open_cache, elsewhere=ELSEWHERE) as partial, encode_in(workers, encoder) as encode:
            written = _write_splits(partial, data, encoder, encode)
            manifest = _manifest(config, fields, data, encoder, *written)
            with disk_errors(partial, elsewhere=ELSEWHERE):
                write_manifest(partial / MANIFEST, manifest.model_dump(mode="json"))
    return directory


def _check_has_rows(config: Config, split: str, rows: int, counts: Mapping[str, int]) -> None:
    if not rows:
        problem = f"the {split} split of task {config.task.name} has no rows (read and dropped: {dict(counts)})"
        fix = "check task.data_dir, and raise task.train_rows, task.validation_rows and task.test_rows if they are set"
        raise DataError(problem, fix=fix)


def _is_ready(directory: Path, fields: dict[str, Any]) -> bool:
    if not directory.exists():
        return False
    try:
        cache = open_cache(directory)
    except CacheError as error:
        print(f"building it again: {error.problem}", file=sys.stderr)
        return False
    if cache.manifest.fields != fields:
        changes = "; ".join(differences(fields, cache.manifest.fields))
        fix = f"delete {directory}, then rebuild it: `flare-ds prepare CONFIG`"
        raise CacheError(f"{directory} holds another cache: {changes}", fix=fix)
    return True


def _write_splits(
    directory: Path, data: ParallelData, encoder: RowEncoder, encode: Encode
) -> tuple[dict[str, SplitSummary], dict[str, Section], Counter[str]]:
    dtypes = {stream.name: encoder.token_dtype(stream) for stream in encoder.streams}
    splits: dict[str, SplitSummary] = {}
    sections: dict[str, Section] = {}
    counts: Counter[str] = Counter()
    with bar(total=sum(map(len, data.splits.values())), desc="tokenize", unit="row") as progress:
        for split, rows in data.splits.items():
            with SplitWriter(directory, split, dtypes, encoder.task, answers_source=encoder.answers_source) as writer:
                for chunk, encoded in encode(split, _chunks(rows)):
                    writer.append(chunk, encoded)
                    counts.update(encoded.counts)
                    progress.update(len(chunk))
                splits[split], of_split = writer.finish()
            sections |= of_split
    return splits, sections, counts


def _manifest(
    config: Config,
    fields: dict[str, Any],
    data: ParallelData,
    encoder: RowEncoder,
    splits: dict[str, SplitSummary],
    sections: dict[str, Section],
    encoded: Mapping[str, int],
) -> Manifest:
    counts = data.counts | dict(encoded)
    for name, split in splits.items():
        _check_has_rows(config, name, split.rows, counts)
    form, pad, eos = encoder.form, encoder.tokenizer.pad_token_id, encoder.tokenizer.eos_token_id
    return Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        key=json_sha256(fields),
        fields=fields,
        streams={stream.name: stream.language for stream in encoder.streams},
        labels=list(encoder.words),
        label_tokens=encoder.label_tokens,
        pad_id=next(id for id in (pad, eos, 0) if id is not None),
        eos_id=form.eos_id,
        prefix_ids=form.prefix_ids,
        suffix_ids=form.suffix_ids,
        newline_ids=form.newline_ids,
        vocabulary_size=encoder.vocabulary_size,
        counts=counts,
        splits=splits,
        sections=sections,
    )


def _chunks(rows: Sequence[ParallelRow]) -> Iterator[Chunk]:
    chunk: list[ParallelRow] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += sum(len(text) for side in (*row.sources, row.target) if side for text in side.fields.values())
        if len(chunk) == _CHUNK_ROWS or characters > _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
