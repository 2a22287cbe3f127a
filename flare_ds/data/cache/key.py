"""The content key: everything the tokens depend on, as named fields, and their checksum.

Two configs share a cache exactly when all fields are equal; two unequal ones are told apart field by field.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from flare_ds.config import TaskConfig
from flare_ds.data.cache.format import FORMAT_VERSION, canonical_json
from flare_ds.data.parallel import ParallelData
from flare_ds.tasks.base import Task

SPECIAL_TOKENS = "prompt: the tokenizer's own, less a final eos; answer: eos, if there is one"
_SETTINGS_FILES = ("tokenizer_config.json", "chat_template.jinja")
"""Saved tokenizer files that say where it was loaded from or how to chat, but not how text becomes ids."""


def key_fields(
    config: TaskConfig, task: Task, data: ParallelData, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Collect all that the tokens of a cache depend on, as JSON values."""
    field_names = [*data.splits["train"][0].target]
    extra = list(config.extra_source_languages)
    return {
        "format_version": FORMAT_VERSION,
        "task": task.name,
        "task_version": task.version,
        "source_language": config.source_language,
        **({"extra_source_languages": extra} if extra else {}),  # absent, so that a plain pair keeps its key
        "target_language": config.target_language,
        "train_rows": config.train_rows,
        "validation_rows": config.validation_rows,
        "test_rows": config.test_rows,
        "rows_sha256": rows_fingerprint(data),
        "labels": list(task.labels),
        "prompt_template": task.prompt({name: "{" + name + "}" for name in field_names}),
        "cut_field": task.long_field,
        "max_prompt_tokens": config.max_prompt_tokens,
        "special_tokens": SPECIAL_TOKENS,
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
    }


def content_key(fields: Mapping[str, Any]) -> str:
    """The sha256 of the fields, as lower-case hex."""
    return hashlib.sha256(canonical_json(dict(fields))).hexdigest()


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Say field by field how a cache differs from what is wanted, e.g. `max_prompt_tokens: 64, not 128`."""
    names = [*wanted, *(name for name in found if name not in wanted)]
    return [
        f"{name}: {found.get(name)!r}, not {wanted.get(name)!r}"
        for name in names
        if found.get(name) != wanted.get(name)
    ]


def rows_fingerprint(data: ParallelData) -> str:
    """Checksum of every row of every split, in order; independent of where the files lie."""
    checksum = hashlib.sha256()
    for split, rows in data.splits.items():
        for row in rows:
            sides = [*map(dict, row.sources), dict(row.target)] if row.sources else [None, dict(row.target)]
            checksum.update(canonical_json([split, row.id, row.label, *sides]) + b"\n")
    return checksum.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Checksum of how the tokenizer turns text into ids; equal for a saved and reloaded copy of it.

    Taken over the files it saves, less what loading and calling it leave there (paths, padding, truncation), and
    over the special ids that the cache uses.
    """
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        saved = sorted(path for path in Path(directory).iterdir() if path.name not in _SETTINGS_FILES)
        files = {path.name: hashlib.sha256(_lasting_content(path)).hexdigest() for path in saved}
    added = tokenizer("")["input_ids"]
    return content_key({"files": files, "added": added, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id})


def _lasting_content(path: Path) -> bytes:
    if path.name != "tokenizer.json":
        return path.read_bytes()
    settings = json.loads(path.read_text(encoding="utf-8"))
    return canonical_json({name: value for name, value in settings.items() if name not in ("padding", "truncation")})
