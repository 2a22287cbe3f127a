"""The token cache: parallel prompts tokenized once, stored as memory-mapped sections, opened by every consumer."""

from flare_ds.data.cache.format import Manifest
from flare_ds.data.cache.key import differences
from flare_ds.data.cache.reader import Cache, CacheSplit, open_cache
from flare_ds.data.cache.requests import remembered, stored
from flare_ds.data.cache.verification import verify
from flare_ds.data.cache.writer import build_cache, prepare_cache

__all__ = [
    "Cache",
    "CacheSplit",
    "Manifest",
    "build_cache",
    "differences",
    "open_cache",
    "prepare_cache",
    "remembered",
    "stored",
    "verify",
]
