"""Which settings a run was made with, and which of them differ from those asked for now.

Only what the method reads counts: steps mean nothing to a method that trains nothing. Paths do not count either: a
base, data or an encoder may be moved; the base is known by its content, the data by the tokens made of it.
"""

from collections.abc import Mapping
from typing import Any

from flare_ds.config import AdapterConfig, Config
from flare_ds.nested_settings import flat
from flare_ds.places import PLACES
from flare_ds.tasks import TASKS

FUSION = frozenset(
    f"adapter.{name}"
    for name in AdapterConfig.model_fields.keys() - {"r", "alpha", "rslora", "dropout", "target_modules", "train_head"}
)
"""Settings of an adapter that mean nothing where no source meets the target in it."""
_FREE_IN_EVALUATION = ("evaluate.", "generate.", "translate.", "task.test_rows", "model.")


def deciding(config: Config) -> dict[str, Any]:
    """The settings that decide what comes of a run, by dotted name; lists as JSON has them."""
    settings = flat(config.deciding())
    if config.recipe.fuses == "keys":
        del settings["source.provider"]  # the keys are the same, computed anew or stored
    return {name: value for name, value in settings.items() if name not in PLACES and is_read(name, config)}


def changes(saved: Config, wanted: Config, *, evaluated: bool = False) -> dict[str, tuple[Any, Any]]:
    """Deciding settings that differ: what was saved and what is wanted, by dotted name.

    A run that is only to be scored (`evaluated`) may be so otherwise than before.
    """
    before, now = flat(saved.deciding()), flat(wanted.deciding())
    if before == now:  # as of nearly all of a thousand cells
        return {}
    names = dict.fromkeys([*deciding(wanted), *deciding(saved)])
    if evaluated:
        names = dict.fromkeys(name for name in names if not name.startswith(_FREE_IN_EVALUATION))
    return {name: (before[name], now[name]) for name in names if before[name] != now[name]}


def is_read(name: str, config: Config) -> bool:
    """Whether a setting, given by its dotted name, means anything to a run's method."""
    recipe = config.recipe
    if name in FUSION:
        return config.sources > 0
    match name.split("."):
        case ["train", "objective"]:
            return True
        case ["train", "source_dropout"]:
            return recipe.trains_on_source
        case ["train" | "adapter", _] | ["task", "train_rows"]:
            return recipe.trains
        case ["mixup", _]:
            return recipe.fuses == "mixup"
        case ["source", "provider"]:
            return recipe.states == "source" and not recipe.adapts_source
        case ["source", _]:
            return config.sources > 0 or config.caches_mt
        case ["translate", _]:
            return config.task.is_translated
        case ["generate", _]:
            return _may_write(config)
    return True


def _may_write(config: Config) -> bool:
    """Whether answers may be generated; what the task of a file asks is not known here, where no code of one is run."""
    task = config.task
    has_labels = task.path is None and task.name in TASKS and not TASKS.get(task.name).free_answers
    return config.evaluate.answers == "generated" or (config.train.objective == "vocabulary" and not has_labels)


def differs(saved: Config, wanted: Config) -> bool:
    """Whether anything differs at all."""
    return _dump(saved) != _dump(wanted)


def _dump(config: Config) -> Mapping[str, Any]:
    return config.model_dump(mode="json", exclude={"run_dir"})
