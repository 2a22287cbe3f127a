"""Building a cache: tokenize every row once, write the sections beside the final place, then rename the directory.

A build that dies leaves a hidden directory without a manifest, which never opens. Builders of the same cache do not
wait for each other: the first to finish wins, the others find its cache and drop their own.
"""

import errno
import secrets
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from flare_ds.config import Config
from flare_ds.data.cache.encode import Encode, Fields, PromptEncoder, encode_in, label_tokens
from flare_ds.data.cache.format import (
    ELSEWHERE,
    FORMAT,
    FORMAT_VERSION,
    Manifest,
    Section,
    SplitSummary,
    section_name,
    token_dtype,
    write_manifest,
    write_section,
)
from flare_ds.data.cache.key import content_key, differences, key_fields
from flare_ds.data.cache.reader import open_cache
from flare_ds.data.collate import source_streams
from flare_ds.data.parallel import ParallelData, ParallelRow, load_parallel
from flare_ds.exceptions import CacheError, DataError
from flare_ds.files import disk_errors, sync
from flare_ds.tasks import TASKS

_CHUNK_ROWS = 512


def prepare_cache(config: Config, tokenizer: PreTrainedTokenizerBase, *, workers: int = 1) -> Path:
    """Find the cache of a config, or build it.

    Args:
        config: its `task` and `cache_dir` decide what is built and where.
        tokenizer: of the base model.
        workers: processes that tokenize; the files do not depend on it.

    Returns:
        The cache directory.

    Raises:
        ConfigError: no such task.
        DataError: the data cannot be read, a prompt cannot be made to fit, or label words cannot be told apart.
        CacheError: the directory of this cache holds another one.
        HostError: the disk is full, or `cache_dir` is not writable.
    """
    task = TASKS.get(config.task.name)
    data = load_parallel(task, config.task)
    _check_splits_have_rows(task.name, data)
    fields = key_fields(config.task, task, data, tokenizer)
    sources = "+".join(config.task.source_languages)
    name = f"{task.name}-{sources}-{config.task.target_language}-{content_key(fields)[:16]}"
    directory = Path(config.cache_dir) / name
    if not _is_ready(directory, fields):
        encoder = PromptEncoder(task, tokenizer, config.task.max_prompt_tokens)
        _build(directory, fields, data, encoder, workers)
    return directory


def _check_splits_have_rows(task: str, data: ParallelData) -> None:
    for split, rows in data.splits.items():
        if not rows:
            problem = f"the {split} split of task {task} has no rows (read and dropped: {data.counts})"
            raise DataError(problem, fix="check task.data_dir: this is too little data to train and test on")


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
        raise CacheError(f"{directory} holds another cache: {changes}", fix=f"delete {directory}, then prepare again")
    return True


def _build(directory: Path, fields: dict[str, Any], data: ParallelData, encoder: PromptEncoder, workers: int) -> None:
    """Write everything into a hidden sibling directory, then rename it to its final name."""
    partial = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    with disk_errors(partial.parent, elsewhere=ELSEWHERE):
        partial.mkdir(parents=True)
    try:
        _write_cache(partial, fields, data, encoder, workers)
        with disk_errors(directory.parent, elsewhere=ELSEWHERE):
            _publish(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, directory: Path) -> None:
    """Rename into place; where a good cache is already, another builder was faster, and a bad one makes way."""
    while True:
        try:
            partial.rename(directory)
            return sync(directory.parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            open_cache(directory)
            return None
        except CacheError:
            aside = partial.with_name(f"{partial.name}.damaged")
            with suppress(FileNotFoundError):  # another builder moved it first
                directory.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)


def _write_cache(
    directory: Path, fields: dict[str, Any], data: ParallelData, encoder: PromptEncoder, workers: int
) -> None:
    tokenizer, labels = encoder.tokenizer, list(encoder.task.labels)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    words = label_tokens(labels, tokenizer)
    vocabulary_size = max(tokenizer.get_vocab().values()) + 1
    streams = [*_streams(data.splits["train"][0])]
    prompts = len(streams) * sum(map(len, data.splits.values()))
    with encode_in(workers, encoder) as encode, tqdm(total=prompts, desc="tokenize", unit="prompt") as progress:
        answers = [word + ([] if eos is None else [eos]) for word in words]
        writer = _SplitWriter(directory, encoder, encode, answers, token_dtype(vocabulary_size), progress)
        splits: dict[str, SplitSummary] = {split: writer.write(split, rows) for split, rows in data.splits.items()}
    manifest = Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        key=content_key(fields),
        fields=fields,
        streams=streams,
        labels=labels,
        label_tokens=words,
        pad_id=next(id for id in (pad, eos, 0) if id is not None),
        eos_id=eos,
        vocabulary_size=vocabulary_size,
        counts=data.counts,
        splits=splits,
        sections=writer.sections,
    )
    write_manifest(directory, manifest)


def _streams(row: ParallelRow) -> dict[str, Fields]:
    """What each stream of a row says, sources first."""
    return {**dict(zip(source_streams(len(row.sources)), row.sources, strict=True)), "target": row.target}


@dataclass
class _SplitWriter:
    """Writes the sections of one split after another, and remembers what it wrote."""

    directory: Path
    encoder: PromptEncoder
    encode: Encode
    answers: list[list[int]]
    dtype: np.dtype
    progress: tqdm
    sections: dict[str, Section] = field(default_factory=dict)

    def write(self, split: str, rows: Sequence[ParallelRow]) -> SplitSummary:
        """Tokenize and write one split."""
        ids = [row.id.encode("utf-8") for row in rows]
        self._put(np.frombuffer(b"".join(ids), np.uint8), split, "ids")
        self._put(_offsets([len(row_id) for row_id in ids]), split, "ids", "offsets")
        self._put(np.array([row.label for row in rows], np.int32), split, "labels")
        truncated: dict[str, int] = {}
        longest: dict[str, int] = {}
        for stream in _streams(rows[0]):
            truncated[stream], longest[stream] = self._write_stream(split, stream, rows)
        return SplitSummary(rows=len(rows), truncated=truncated, longest_prompt=longest)

    def _write_stream(self, split: str, stream: str, rows: Sequence[ParallelRow]) -> tuple[int, int]:
        """Tokenize one stream of the rows; return how many prompts were cut, and the tokens of the longest."""
        chunks = [rows[start : start + _CHUNK_ROWS] for start in range(0, len(rows), _CHUNK_ROWS)]
        encoded = self.encode([_streams(row)[stream] for row in chunk] for chunk in chunks)
        truncated = 0
        prompt_lengths: list[int] = []
        lengths: list[int] = []
        tokens: list[np.ndarray] = []
        for chunk, (prompts, cut) in zip(chunks, encoded, strict=True):
            self.encoder.check_lengths((row.id for row in chunk), prompts)
            texts = [prompt + self.answers[row.label] for row, prompt in zip(chunk, prompts, strict=True)]
            truncated += cut
            prompt_lengths += map(len, prompts)
            lengths += map(len, texts)
            tokens.append(np.fromiter(chain.from_iterable(texts), self.dtype))
            self.progress.update(len(chunk))
        self._put(np.concatenate(tokens), split, stream, "tokens")
        self._put(_offsets(lengths), split, stream, "offsets")
        self._put(np.array(prompt_lengths, np.int32), split, stream, "prompt_lengths")
        return truncated, max(prompt_lengths)

    def _put(self, array: np.ndarray, split: str, *parts: str) -> None:
        name = section_name(split, *parts)
        self.sections[name] = write_section(self.directory / name, array)


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    """Where each item starts, and where the last one ends: int64, one longer than `lengths`."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
