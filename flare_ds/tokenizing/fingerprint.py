"""Which tokenizer it is: a checksum of how it turns text into ids, wherever it was loaded from."""

import hashlib
import json
import tempfile
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from flare_ds.checksums import canonical_json, json_sha256
from flare_ds.files import OTHER_TMPDIR, disk_errors

_SETTINGS_FILES = ("tokenizer_config.json", "chat_template.jinja", "additional_chat_templates")
"""Saved by a tokenizer to say where it came from or how to chat, and seldom how text becomes ids."""
_SAMPLE = "A a Á a\u0301 ﬁ ½ ... don't 12,345 http://a.b @you 中文 שלום 😀\t \n ."
"""Text that most settings of a tokenizer show in: cases, accents, compatible forms, white space."""


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Checksum of how the tokenizer turns text into ids; equal for a saved and reloaded copy of it.

    Taken over the files it saves, less what loading and calling it leave there (paths, padding, truncation), over
    the ids it gives to a sample, since a slow tokenizer's files are not all it depends on, and over the special ids
    that the cache uses.
    """
    with disk_errors(Path(tempfile.gettempdir()), elsewhere=OTHER_TMPDIR), tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        names = {path.relative_to(directory): path for path in Path(directory).rglob("*") if path.is_file()}
        lasting = sorted((name, path) for name, path in names.items() if name.parts[0] not in _SETTINGS_FILES)
        files = {name.as_posix(): hashlib.sha256(_lasting_content(path)).hexdigest() for name, path in lasting}
    sample = tokenizer(_SAMPLE)["input_ids"]
    return json_sha256({"files": files, "sample": sample, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id})


def _lasting_content(path: Path) -> bytes:
    if path.name != "tokenizer.json":
        return path.read_bytes()
    settings = json.loads(path.read_text(encoding="utf-8"))
    return canonical_json({name: value for name, value in settings.items() if name not in ("padding", "truncation")})
