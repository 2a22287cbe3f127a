"""Our averages beside the paper's, where task and model are the paper's."""

from collections.abc import Sequence

import numpy as np

from flare_ds.markdown import DASH, table
from flare_ds.reporting.groups import Group
from flare_ds.reporting.paper import LANGUAGES, paper_model, published

_COLUMNS = ("task", "model", "method", "languages", "ours", "the paper's")
_NOTE = (
    "In points, averaged over languages. The paper's (FLARE, ACL 2025, main table) are its authors' figures for all of "
    "a task's languages, from their translations, seeds and training; ours are the mean of the scores above. So this "
    "says whether ours are in its range, not which is better. Its label words are written, ours are ranked unless "
    "evaluate.answers=generated; and it trains longer, on NF4 bases (docs/departures.md). Its flare "
    "has pairing=output, fused_modules=[q_proj, v_proj] and source_down=shared, which are not the defaults here."
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
