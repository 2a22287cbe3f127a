"""The model card: a README.md beside the adapter, with front matter as the Hugging Face hub reads it.

The card follows from the adapter's files and the run's config, so it can be written again at any time: with the
adapter, with what it scored in validation, and after `evaluate` with the test scores added.
"""

import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from huggingface_hub import EvalResult, ModelCardData
from pydantic import BaseModel, ConfigDict

from flare_ds.adapters.files import OWN_PEFT_TYPE, SETTINGS, WEIGHTS, made_anew, read_kept
from flare_ds.config import Config
from flare_ds.exceptions import CheckpointError
from flare_ds.files import open_tensors, reading, write_text
from flare_ds.json_text import parse_object
from flare_ds.markdown import DASH, table
from flare_ds.tasks.base import Metric, Task

CARD = "README.md"
_METRICS = {
    "accuracy": ("accuracy", "accuracy"),
    "macro_f1": ("f1", "macro F1"),
    "exact_match": ("exact_match", "exact match"),
    "f1": ("f1", "F1"),
}
"""Figures the card tells: what the hub calls each, and what a reader does."""
assert set(get_args(Metric)) <= _METRICS.keys(), "a metric has a name on the card"


class _Kept(BaseModel):
    """What was kept with the weights."""

    model_config = ConfigDict(strict=True)

    validation: dict[str, float] | None = None
    versions: dict[str, str] = {}


def write_card(directory: Path, config: Config, task: Task, *, test: Mapping[str, Any] | None = None) -> None:
    """Write the card of a saved adapter beside it.

    Raises:
        CheckpointError: see `card_text`; so are the arguments.
    """
    write_text(directory / CARD, card_text(directory, config, task, test=test))


def card_text(
    directory: Path, config: Config, task: Task, *, test: Mapping[str, Any] | None = None, licence: str | None = None
) -> str:
    """The card of a saved adapter.

    Args:
        directory: the adapter's.
        config: the run's settings.
        task: its task.
        test: figures and number of examples of the test split; None: not evaluated yet.
        licence: as the hub abbreviates it; None: not said.

    Raises:
        CheckpointError: the adapter's files are missing or damaged.
    """
    plain, trained, kept = _read(directory)
    validation = kept.validation
    parts = [
        f"---\n{_front_matter(config, plain, validation, test, licence).to_yaml()}\n---",
        f"# {config.method}: {config.task.name} in {config.task.target_language}",
        _description(config, trained) + _added(config, validation or {}),
        _scores_table(validation, test),
        _how_to_load(config, task, plain),
        f"## Settings\n\n```yaml\n{config.to_yaml()}```",
        "## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in kept.versions.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _read(directory: Path) -> tuple[bool, int, _Kept]:
    """Whether PEFT alone can load the adapter, how many parameters it has, and what was kept with them."""
    with reading(directory, CheckpointError, damaged=made_anew(directory)):
        settings = parse_object((directory / SETTINGS).read_bytes())
        with open_tensors(directory / WEIGHTS) as weights:
            shapes = [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118 - not a dict
        kept = _Kept.model_validate(read_kept(directory))
        if kept.validation is not None:
            kept.validation["step"]  # a KeyError here, where it is told
        return settings["peft_type"] != OWN_PEFT_TYPE, sum(map(math.prod, shapes)), kept


def _front_matter(
    config: Config,
    plain: bool,
    validation: Mapping[str, Any] | None,
    test: Mapping[str, Any] | None,
    licence: str | None,
) -> ModelCardData:
    splits = (("validation", validation or {}), ("test", test or {}))
    results = [
        _result(config, split, metric, scores[metric])
        for split, scores in splits
        for metric in _METRICS
        if metric in scores
    ]
    words_only = config.adapter.train_head and config.train.objective == "labels"
    fused = [f"fusion:{config.adapter.fusion}"] if config.sources else []
    languages = [config.task.source_language, *config.sources_read, config.task.target_language]
    return ModelCardData(
        base_model=config.model.base,
        license=licence,
        library_name="peft" if plain else "flare_ds",
        pipeline_tag="text-classification" if words_only else "text-generation",
        language=list(dict.fromkeys(tag for code in languages for tag in _hub_language(code))),
        tags=["flare_ds", config.method, "lora", "cross-lingual-transfer", config.task.name, *fused],
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=f"{config.method}-{config.task.name}-{config.task.target_language}" if results else None,
        eval_results=results or None,
    )


def _hub_language(code: str) -> list[str]:
    """The code of ISO 639 that a task's code begins with: of pt-BR or zho_Hans the hub takes pt and zho alone."""
    found = re.match(r"[a-z]{2,3}(?![A-Za-z0-9])", code)
    return [found[0]] if found else []


def _result(config: Config, split: str, metric: str, value: float) -> EvalResult:
    language = config.task.target_language
    kind, name = _METRICS[metric]
    return EvalResult(
        task_type="question-answering" if metric in ("exact_match", "f1") else "text-classification",
        dataset_type=config.task.name,
        dataset_name=f"{config.task.name} ({language})",
        dataset_config=language,
        dataset_split=split,
        metric_type=kind,
        metric_name=name,
        metric_value=value,
    )


def _description(config: Config, trained: int) -> str:
    lines = [f"An adapter with {trained:,} trained parameters for `{config.model.base}`, which stays frozen:"]
    lines.append(_function(config))
    if config.adapter.train_head:
        rows = "the label words' rows of it" if config.train.objective == "labels" else "all of it"
        lines.append(f"The output matrix is trained too: {rows}.")
    return " ".join(lines)


def _function(config: Config) -> str:
    """What the adapter computes, from which texts."""
    adapter, task, recipe = config.adapter, config.task, config.recipe
    scale = "sqrt(r)" if adapter.rslora else "r"
    reads = f"the text in `{'`, `'.join(config.sources_read)}`"
    if recipe.fuses == "bottleneck":
        if config.reads_mt_encoder:
            reads = f"the states of the MT encoder `{config.source.mt_encoder}`"
        down = "A" if adapter.source_down == "shared" else "A'"
        return (
            f"FLARE, y = W·t + (α/{scale})·B·φ({down}·s, A·t) with φ = {adapter.fusion} in "
            f"{', '.join(adapter.fused_modules)}, trained on `{task.name}` in `{task.target_language}` (t), "
            f"reading {reads} beside it (s)."
        )
    lora = f"LoRA, y = W·x + (α/{scale})·B·A·x, trained on `{task.name}` in `{task.target_language}`."
    if recipe.fuses == "mixup":
        return f"{lora} At one layer its states are mixed with what they find in those of {reads} (x_mixup)."
    if recipe.fuses == "keys":
        made = f"the keys and values that the frozen base makes of {reads}"
        return f"{lora} Its attention reads {made} before its own (source_prefix)."
    if recipe.reads == "source":
        return f"{lora} In its place it reads {reads} (source_lora)."
    return f"{lora} It reads {reads} in front of it (input_fusion)." if recipe.reads == "joint" else lora


def _added(config: Config, figures: Mapping[str, Any]) -> str:
    """What the scores are made of besides the adapter's."""
    if config.late is None:
        return ""
    weight = figures.get("late", 0.0) if config.late == "fitted" else config.late
    return (
        f" The score of a label word is its log-probability plus {weight:g} times the log-probability that the frozen "
        f"base gives it after the text in `{config.task.source_language}` (late)."
    )


def _scores_table(validation: Mapping[str, Any] | None, test: Mapping[str, Any] | None) -> str:
    scored = [scores for scores in (validation, test) if scores is not None]
    if not scored:
        return "## Scores\n\nNot evaluated yet."
    metrics = [metric for metric in _METRICS if all(metric in scores for scores in scored)]
    lines = []
    if validation is not None:
        lines.append([f"validation (step {validation['step']:.0f})", *(f"{validation[m]:.4f}" for m in metrics), DASH])
    if test is not None:
        lines.append(["test", *(f"{test[m]:.4f}" for m in metrics), str(test["examples"])])
    return "## Scores\n\n" + table(["split", *(_METRICS[metric][1] for metric in metrics), "examples"], lines)


def _how_to_load(config: Config, task: Task, plain: bool) -> str:
    run, merged, rows = shlex.quote(config.run_dir), shlex.quote(config.run_dir + "-merged"), ""
    if config.run_dir == ".":  # a folder for others, who have it in any place, and not the run's data
        merged, rows = "../merged", " --file labelled.csv"
    texts = [("source", language) for language in config.sources_read] + [("target", config.task.target_language)]
    asked = [f"--{side} {shlex.quote(task.text_form(f'TEXT in {language}'))}" for side, language in texts]
    commands = [
        f"flare-ds evaluate {run}{rows}",
        f"flare-ds predict {run} {' '.join(asked)}",
    ]
    if config.recipe.fuses is None:
        commands.append(f"flare-ds merge {run} --output {merged}")
    text = (
        "## How to load it\n\nWith flare_ds, as the directory `adapter/` of a run whose `config.yaml` holds the "
        "settings below:\n\n```bash\n" + "\n".join(commands) + "\n```\n\n"
    )
    if not plain:
        return text + "PEFT alone refuses it: it would compute something else."
    return text + (
        "With PEFT alone:\n\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({config.model.base!r})\n"
        f"model = PeftModel.from_pretrained(base, {config.run_dir + '/adapter'!r})\n```"
    )
