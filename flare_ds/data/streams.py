"""What the source streams of a row are called, in a cache and in a batch."""


def source_streams(sources: int) -> tuple[str, ...]:
    """Names of the source streams: source, source2, source3 ..."""
    return tuple("source" if number == 1 else f"source{number}" for number in range(1, sources + 1))
