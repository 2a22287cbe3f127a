"""Caches as lines of a table, and how their languages are said."""

from collections.abc import Sequence

from flare_ds.data.cache.directory import StoredCache
from flare_ds.data.cache.format import Manifest
from flare_ds.human import human_age, human_size


def table(caches: Sequence[StoredCache]) -> list[str]:
    """A line for each cache, below a heading."""
    rows = [("task", "languages", "rows", "size", "age", "state", "directory"), *map(_cells, caches)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cells(cache: StoredCache) -> tuple[str, ...]:
    task, languages, rows = "–", "–", "–"
    if (manifest := cache.manifest) is not None:
        task, languages = manifest.fields["task"], pair(manifest)
        rows = " + ".join(f"{split.rows:,}" for split in manifest.splits.values())
    return task, languages, rows, human_size(cache.bytes), human_age(cache.seconds_old), cache.state, str(cache.path)


def pair(manifest: Manifest) -> str:
    """The languages, e.g. `en+de → pl`; one where source and target are the same."""
    fields = manifest.fields
    sources = [fields["source_language"], *fields.get("extra_source_languages", [])]
    target = fields["target_language"]
    return target if sources == [target] else f"{'+'.join(sources)} → {target}"
