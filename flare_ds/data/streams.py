"""The streams of tokens in which a row is kept, in a cache and in a batch: what each says, and to whom.

    source, source2 ...   a prompt and an answer in each source language     for the base
    target                the same in the target language                    for the base
    mt                    the target text alone                              for an MT encoder

A new stream is an entry of `token_streams`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from flare_ds.config import Config
from flare_ds.data.parallel_row import ParallelRow, Side

MT = "mt"
"""The stream whose tokens are another tokenizer's, and that no answer follows."""


@dataclass(frozen=True)
class Stream:
    """One of them."""

    name: str
    language: str
    source: int | None = None
    """Number of the source side that it says; None: it says the target side."""

    def text_of(self, row: ParallelRow) -> Side | None:
        """What it says of a row, if anything."""
        return row.target if self.source is None else row.sources[self.source]


def token_streams(config: Config, *, mt: bool) -> list[Stream]:
    """The streams of a config's rows; with that of an MT encoder, where one reads the target text, too."""
    languages = config.task.source_languages if config.has_source else ()
    names = source_streams(len(languages))
    streams = [
        Stream(name, language, number) for number, (name, language) in enumerate(zip(names, languages, strict=True))
    ]
    streams.append(Stream("target", config.task.target_language))
    return [*streams, Stream(MT, str(config.source.mt_language))] if mt else streams


def source_streams(sources: int) -> tuple[str, ...]:
    """Names of the source streams: source, source2, source3 ..."""
    return tuple("source" if number == 1 else f"source{number}" for number in range(1, sources + 1))


def is_base(stream: str) -> bool:
    """Whether the base reads the stream of that name: prompts in its tokens, and answers behind them."""
    return stream != MT


def are_streams(names: Iterable[str]) -> bool:
    """Whether these can be the streams of a cache, in their order."""
    names = list(names)
    sources = len(names) - names.count(MT) - 1
    return names == [*source_streams(sources), "target", *([MT] if MT in names else [])]
