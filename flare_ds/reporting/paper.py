"""Our averages beside those of the FLARE paper (ACL 2025, main table, as its authors publish it), where it has them.

They are over the languages of a task, in points: accuracy on XNLI, exact match on TyDiQA-GoldP, macro F1 on NusaX.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flare_ds.markdown import DASH, table
from flare_ds.reporting.groups import Group, untuned

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
_COLUMNS = ("task", "model", "method", "languages", "ours", "the paper's")
_NOTE = (
    "In points, averaged over languages. The paper's figures (FLARE, ACL 2025, main table) cover all languages of a "
    "task, with its authors' translations, seeds and training; ours are the means of the scores above. So this shows "
    "whether ours are in the paper's range, not which is better. In the paper the model generates the label word, here "
    "label words are ranked unless evaluate.answers=generated; and the paper trains longer, on all rows, on NF4 bases "
    "(docs/departures.md). Its flare has pairing=output, fused_modules=[q_proj, v_proj] and source_down=shared, which "
    "are not the defaults here."
)


def against_paper(groups: Sequence[Group]) -> str:
    """The comparison; empty where the paper has none of the tasks and models."""
    averages: dict[tuple[str, str, str], list[Group]] = {}  # by task, model, and kind: a method may be set in two ways
    for group in groups:
        config = group.runs[0].config
        model = paper_model(config.model.base)
        # The paper averages over target languages.
        if not (config.has_source and model and group.finished):
            continue
        if published(config.task.name, model, group.method) is not None:
            averages.setdefault((config.task.name, model, group.kind), []).append(group)
    if not averages:
        return ""
    lines = [_line(task, model, of_languages) for (task, model, _), of_languages in averages.items()]
    return "\n\n".join(["## Beside the paper", table(_COLUMNS, lines), _NOTE])


def _line(task: str, model: str, groups: Sequence[Group]) -> tuple[str, ...]:
    languages = {group.language for group in groups}
    # What stands twice in a language, in two places, is no one average.
    ours = DASH if len(languages) < len(groups) else f"{100 * np.mean([group.score for group in groups]):.2f}"
    told = next((group for group in groups if group.place), groups[0])
    of = f"{len(languages)} of {LANGUAGES[task]}"
    return task, model, told.label, of, ours, f"{published(task, model, told.method):.2f}"


def paper_model(base: str) -> str | None:
    """The paper's name of a base, a hub name or a directory, tuned or not; None: the paper does not have it."""
    name = Path(untuned(base)).name
    return next((model for model, names in _NAMES.items() if re.fullmatch(names, name, re.IGNORECASE)), None)


def published(task: str, model: str, method: str) -> float | None:
    """The paper's score, in points; None where it has none."""
    if task not in LANGUAGES or method not in TABLE[model]:
        return None
    return TABLE[model][method][list(LANGUAGES).index(task)]
