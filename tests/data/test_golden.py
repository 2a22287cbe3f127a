"""Splits, ids, texts, answers and counts stay what they were, row for row: caches and runs of old are found by them.

The checksums were taken before rows lay in Arrow tables. Those of published data are looked at where FLARE_DS_REAL_DATA
is a directory that holds it.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flare_ds.checksums import json_sha256
from flare_ds.config import Config, TaskConfig
from flare_ds.data import translated
from flare_ds.data.cache import open_cache, prepare_cache
from flare_ds.data.cache.key import rows_fingerprint
from flare_ds.data.parallel import load_parallel
from flare_ds.models.loading import load_tokenizer
from flare_ds.tasks.base import Answer, Row
from flare_ds.tasks.load import task_of
from flare_ds.translation.job import TranslationJob
from tests.toy import toy_settings

REAL = Path(os.environ.get("FLARE_DS_REAL_DATA") or "/nonexistent")


def said(job: TranslationJob) -> Iterator[Row | None]:
    """Swaps the case of letters; fails on some rows, loses some answers, marks some translations."""
    for row in job.rows:
        number = hashlib.sha256(row.id.encode()).digest()[0]
        if number < 20:
            yield None
            continue
        fields = {name: text.swapcase() for name, text in row.fields.items()}
        lost = [None if place == number % 3 else 0 for place in range(len(row.answers))]
        answers = tuple(Answer(a.text.swapcase(), start) for a, start in zip(row.answers, lost, strict=True))
        yield Row(row.id, fields, row.label, answers, ("loop",) if number > 230 else ())


def fingerprint(**settings: Any) -> str:
    """Of all rows in order, and of what was counted."""
    config = TaskConfig.model_validate(settings)
    data = load_parallel(task_of(config), config)
    ids = {split: [row.id for row in rows] for split, rows in data.splits.items()}
    counts = {name: number for name, number in sorted(data.counts.items()) if number}
    return json_sha256([rows_fingerprint(data), ids, counts])[:16]


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translated, "find_translation", lambda job, _: job)
    monkeypatch.setattr(translated, "read_translation", lambda job, _: said(job))


TOY = {"own": "00ea419952f3aa47", "translated": "85c452e26cb9e642", "one language": "a6771925d26f30d4"}
SIDES: dict[str, dict[str, Any]] = {
    "own": {"target_language": "pl", "test_rows": 50},
    "translated": {"target_language": "pl", "sides": "translated", "train_rows": 300},
    "one language": {"target_language": "en", "drop_shared_passages": True},
}


@pytest.mark.parametrize("name", SIDES)
def test_rows_of_the_toy_world(name: str, tmp_path: Path) -> None:
    toy = toy_settings(tmp_path)["task"]
    assert fingerprint(name="multiemo", data_dir=toy["data_dir"], **SIDES[name]) == TOY[name]


def test_the_cache_of_the_toy_world(tmp_path: Path) -> None:
    config = Config.model_validate(toy_settings(tmp_path))
    path = prepare_cache(config, load_tokenizer(config.model))
    sections = {name: section.sha256 for name, section in open_cache(path).manifest.sections.items()}
    assert [open_cache(path).key[:16], json_sha256(sections)[4:16]] == ["8071567fc1b108ec", "c8d5adcba154"]


SHARED = {"drop_shared_passages": True}
PUBLISHED: dict[str, tuple[dict[str, Any], str]] = {
    "nusax": ({"target_language": "jav", "extra_source_languages": ["ind", "sun"]}, "afaf3d3c69e1e1b4"),
    "xnli": ({"target_language": "sw", "test_rows": 900}, "21d24cc7e34b51ee"),
    "xnli_mt": ({"name": "xnli", "target_language": "sw"} | SHARED, "cf18376a193cebec"),
    "xquad": ({"path": "tasks/xquad.yaml", "target_language": "hi"} | SHARED, "f1a8223f150497f8"),
}


@pytest.mark.skipif(not REAL.is_dir(), reason="FLARE_DS_REAL_DATA names no directory of published data")
@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_of_published_data(name: str) -> None:
    given, expected = PUBLISHED[name]
    settings = {"name": name, "data_dir": str(REAL / name)} | given
    if "path" in settings:
        settings["path"] = str(REAL / settings["path"])
    assert fingerprint(**settings) == expected
