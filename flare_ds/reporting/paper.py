"""What the FLARE paper (ACL 2025, main table, as its authors publish it) says of its three tasks and two decoders.

Averages over the languages of a task, in points: accuracy on XNLI, exact match on TyDiQA-GoldP, macro F1 on NusaX.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

LANGUAGES = {"xnli": 14, "tydiqa": 8, "nusax": 11}
"""Its tasks, as ours are named, and how many target languages each average is over."""

Scores = tuple[float, float, float]
"""On each of `LANGUAGES`, in that order."""

TABLE: Mapping[str, Mapping[str, Scores]] = {
    "Llama 3.1 8B": {
        "zero_shot": (77.40, 2.36, 71.74),
        "translate_test": (79.08, 2.53, 72.67),
        "lora": (80.74, 42.84, 74.76),
        "x_mixup": (80.22, 17.47, 75.91),
        "input_fusion": (80.70, 46.09, 74.60),
        "flare_mt": (80.83, 38.95, 74.52),
        "flare": (80.92, 47.74, 76.08),
    },
    "Gemma 2 9B": {
        "zero_shot": (80.47, 2.46, 71.61),
        "translate_test": (79.99, 2.28, 71.61),
        "lora": (84.89, 49.93, 79.37),
        "x_mixup": (84.62, 35.45, 79.94),
        "input_fusion": (80.53, 51.29, 77.98),
        "flare_mt": (84.84, 49.63, 78.09),
        "flare": (85.01, 52.14, 80.86),
    },
}
_NAMES = {
    "Llama 3.1 8B": r"(meta-)?llama-?3\.1-8b",
    "Gemma 2 9B": r"gemma-?2-9b",
}
"""What each model is called on the hub, or a directory that holds it."""


def paper_model(base: str) -> str | None:
    """The paper's name of a base, tuned by `flare-ds merge` or not; None: the paper does not have it.

    Args:
        base: a hub name or a directory.
    """
    name = Path(untuned(base)).name
    return next((model for model, names in _NAMES.items() if re.fullmatch(names, name, re.IGNORECASE)), None)


def published(task: str, model: str, method: str) -> float | None:
    """The paper's score, in points; None where it has none."""
    if task not in LANGUAGES or method not in TABLE[model]:
        return None
    return TABLE[model][method][list(LANGUAGES).index(task)]


def untuned(base: str) -> str:
    """What a base was before `flare-ds merge` tuned it; one that nothing was merged into is itself."""
    record = Path(base) / "merged_from.json"
    try:
        return str(json.loads(record.read_text(encoding="utf-8"))["base"])
    except (OSError, ValueError, KeyError):
        return base
