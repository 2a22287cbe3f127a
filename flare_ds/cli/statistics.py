"""What is in a cache, in lines of text: rows, labels, lengths of every stream, what was cut or dropped and why.

Shapes: n rows of a split, k of them with a prompt in the stream, b bins.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from flare_ds.data.cache.format import Manifest, SplitSummary
from flare_ds.data.cache.key import ANSWERED
from flare_ds.data.cache.reader import Cache, CacheSplit
from flare_ds.data.cache.verification import check_values
from flare_ds.data.label_trie import LabelTrie
from flare_ds.exceptions import CacheError
from flare_ds.human import human_size

_DROPPED = "dropped_"
_BINS = 12
_BAR = 40


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Turn what a flipped byte makes of labels, lengths or tokens into an error; opening compares sizes only.

    Raises:
        CacheError: naming the command that finds the place.
    """
    try:
        yield
    except (IndexError, ValueError, OverflowError) as error:
        verify = shlex.join(["flare-ds", "cache", "verify", str(path)])
        raise CacheError(f"{path} is damaged: {error}", fix=f"find where: `{verify}`") from error


def summary(cache: Cache) -> list[str]:
    """What a build has made, in a few lines."""
    manifest = cache.manifest
    lines = [f"languages: {manifest.languages}"]
    for name, split in manifest.splits.items():
        cut = ", ".join(f"{number:,} of {stream}" for stream, number in split.truncated.items() if number)
        lines.append(f"{name}: {_examples(split)}; prompts cut: {cut or 'none'}")
    size = sum(section.bytes for section in manifest.sections.values())
    return [*lines, *describe_counts(manifest), *_several_passes(cache), f"size: {human_size(size)}"]


def _several_passes(cache: Cache) -> Iterator[str]:
    passes = len(LabelTrie(cache.label_tokens).paths) if cache.labels else 1
    if passes > 1:
        yield (
            f"label words share beginnings, so scoring a row takes {passes} forward passes "
            "(train.validate_rows and train.validate_every say how much is scored in training)"
        )


def _examples(split: SplitSummary) -> str:
    if not split.windowed:
        return f"{split.examples:,} examples"
    return f"{split.examples:,} examples in {split.rows:,} rows ({split.windowed:,} read through several windows)"


def one_sided(cache: Cache) -> Iterator[str]:
    """A line where no training row has one of the labels, and for each held-out split that has one label alone."""
    for name in cache.manifest.splits if cache.labels else ():
        numbers = _label_counts(cache, cache.split(name))
        words = [word for word, number in zip(cache.labels, numbers, strict=True) if number]
        if name == "train" and (absent := [word for word in cache.labels if word not in words]):
            yield f"train: no row has the label {', '.join(absent)}: does the task say what the table's labels mean?"
        if name != "train" and len(words) == 1:
            yield f"{name}: every row has the label {words[0]}, so its score says nothing of the others"


def _label_counts(cache: Cache, split: CacheSplit) -> np.ndarray:
    """How many rows have each label: int [labels]."""
    return np.bincount(split.labels, minlength=len(cache.labels))


def too_long_to_say(cache: Cache, most: int) -> Iterator[str]:
    """A line for each held-out split with free answers whose first has more tokens than `most`, that are decoded."""
    for name in () if cache.labels else ("validation", "test"):
        split = cache.split(name)
        lengths_e = _answer_lengths(cache, split)[np.unique(split.examples, return_index=True)[1]]
        if number := int((lengths_e > most).sum()):
            yield (
                f"{name}: {number:,} of {len(lengths_e):,} examples have a first right answer with more tokens than "
                f"generate.max_new_tokens={most}; {lengths_e.max()} would be enough for all"
            )


def _answer_lengths(cache: Cache, split: CacheSplit) -> np.ndarray:
    """Tokens of the answer to what is answered of each row, without the eos: int [n]."""
    answers_n = split.lengths("target") - split.prompt_lengths("target")
    if cache.manifest.fields.get(ANSWERED) is not None:
        prompts_n = split.prompt_lengths("source")
        answers_n = np.where(prompts_n > 0, split.lengths("source") - prompts_n, answers_n)
    return answers_n - (cache.manifest.eos_id is not None)


def describe(cache: Cache) -> Iterator[str]:
    """Everything but the tokens: what it was made of, its splits, its size.

    Raises:
        CacheError: a section's header is damaged.
    """
    manifest = cache.manifest
    yield f"{cache.path}"
    yield from (f"  {name}: {value!r}" for name, value in manifest.fields.items())
    for name in manifest.splits:
        yield from describe_split(cache, name)
    yield from describe_counts(manifest)
    for stream in manifest.streams:
        sections = [section for name, section in manifest.sections.items() if f".{stream}." in name]
        yield f"{stream}: {human_size(sum(section.bytes for section in sections))}"


def describe_counts(manifest: Manifest) -> list[str]:
    """How many rows were read, how many were dropped for each reason, and what else was counted among those kept."""
    counts = {name: number for name, number in manifest.counts.items() if number and name != "rows_read"}
    dropped = {name: number for name, number in counts.items() if name.startswith(_DROPPED)}
    return [
        f"{manifest.counts['rows_read']:,} rows read, {sum(dropped.values()):,} dropped",
        *(f"  {number:,} dropped: {_words(name.removeprefix(_DROPPED))}" for name, number in dropped.items()),
        *(f"  {number:,} {_words(name)}" for name, number in counts.items() if name not in dropped),
    ]


def _words(name: str) -> str:
    return name.replace("_", " ")


def describe_split(cache: Cache, name: str) -> Iterator[str]:
    """One split: its rows and labels, then each stream's lengths with a histogram.

    Raises:
        CacheError: a section is damaged.
    """
    split, told = cache.split(name), cache.manifest.splits[name]
    check_values(cache, split)
    yield f"{name}: {_examples(told)}"
    if cache.labels:
        numbers = _label_counts(cache, split)
        yield "  labels: " + ", ".join(f"{word} {number:,}" for word, number in zip(cache.labels, numbers, strict=True))
    else:
        lengths_n = _answer_lengths(cache, split)
        median, most = np.percentile(lengths_n, [50, 95], method="inverted_cdf")
        yield f"  answers: {lengths_n.min()} to {lengths_n.max()} tokens, median {median}, 95 % up to {most}"
    for stream, language in cache.manifest.streams.items():
        yield from _describe_stream(split, stream, language, told.truncated[stream])


def _describe_stream(split: CacheSplit, stream: str, language: str, cut: int) -> Iterator[str]:
    lengths_n = split.prompt_lengths(stream)
    lengths_k = lengths_n[lengths_n > 0]
    absent = len(split) - len(lengths_k)
    said = f"{absent:,} rows without one; " if absent else ""
    if not len(lengths_k):
        yield f"  {stream} ({language}): no row has one"
        return
    median, most = np.percentile(lengths_k, [50, 95], method="inverted_cdf")
    tokens = f"{lengths_k.sum():,} tokens in prompts of {lengths_k.min()} to {lengths_k.max()}"
    yield f"  {stream} ({language}): {said}{tokens}, median {median}, 95 % up to {most}; {cut:,} cut"
    yield from (f"    {line}" for line in draw_histogram(lengths_k))


def histogram(lengths_k: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Count lengths in bins of a round width, at most a dozen: where the first starts, how wide all are, counts [b]."""
    low, high = int(lengths_k.min()), int(lengths_k.max())
    widths = (digit * 10**power for power in range(20) for digit in (1, 2, 5))
    width = next(width for width in widths if high // width - low // width < _BINS)
    start = low // width * width
    return start, width, np.bincount((lengths_k - start) // width)


def draw_histogram(lengths_k: np.ndarray) -> Iterator[str]:
    """A line for each bin: its first and last length, a bar, the count."""
    start, width, counts_b = histogram(lengths_k)
    digits = len(str(start + width * len(counts_b)))
    for number, count in enumerate(counts_b):
        first = start + number * width
        last = first + width - 1
        bar = "█" * int(np.ceil(_BAR * count / counts_b.max()))
        place = f"{first:{digits}}" + (f"–{last:<{digits}}" if width > 1 else "")
        yield f"{place}  {bar}{' ' if count else ''}{count:,}"
