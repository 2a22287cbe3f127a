"""What can be found wrong with a run before a rank starts or a weight is read; and what the run would do."""

import importlib.util
from typing import Any

import torch
from transformers import PreTrainedModel

from flare_ds.adapters.inject import inject_adapter
from flare_ds.batches.plan import number_of_steps, open_order
from flare_ds.config import Config
from flare_ds.data.cache import Cache, remembered
from flare_ds.evaluation.answerable import check_answers
from flare_ds.exceptions import Asking, ConfigError
from flare_ds.models.head import use_head
from flare_ds.models.loading import load_shape, load_tokenizer
from flare_ds.models.mt_encoder import make_projection, mt_width
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.runs import RunDirectory
from flare_ds.runtime.ds_config import read_ds_config
from flare_ds.runtime.engine import check_model, count_trainable
from flare_ds.tasks.load import task_of
from flare_ds.tokenizing.chat import read_frame
from flare_ds.tracking.trackers import check_trackers
from flare_ds.training.readable import check_readable


def check_run(config: Config, *, origin: str) -> list[str]:
    """Check a run's answers, base, DeepSpeed JSON and directory.

    Args:
        config: its settings; what they name is there (see `check_needed`).
        origin: the file they come from.

    Returns:
        What it would do, a line for each thing.

    Raises:
        FlareError: all that is wrong.
    """
    asked = Asking()
    task = asked.of(task_of, config.task)
    if task is not None:
        asked.of(check_answers, config, task)
    for question in (check_trackers, _check_attention, _check_deepspeed):
        asked.of(question, config)
    if config.reads_mt_encoder:
        asked.of(mt_width, config.source)
    shape = asked.of(load_shape, config.model)
    cache = None if shape is None else _ask_base(asked, config, shape)
    asked.tell(origin)
    assert shape is not None, "nothing is wrong with it"
    return [_base(config, shape), *_training(config, shape, cache), _rows(config, cache), _progress(config)]


def _ask_base(asked: Asking, config: Config, shape: PreTrainedModel) -> Cache | None:
    """What needs a base that can be read; the cache that is found."""
    tokenizer = asked.of(load_tokenizer, config.model)
    if tokenizer is None:
        return None
    if config.task.chat:
        asked.of(read_frame, tokenizer)
    asked.of(check_model, config, shape)
    asked.of(_check_begun, config)
    return asked.of(_cache, config, shape)


def _check_attention(config: Config) -> None:
    """Whether a GPU is here does not count: a config may be checked where it will not run."""
    packages = ("flash_attn", "kernels")  # either brings it to transformers
    if config.model.attention == "flash_attention_2" and not any(map(importlib.util.find_spec, packages)):
        problem = "model.attention='flash_attention_2' needs the package flash-attn, which is not installed"
        raise ConfigError(problem, fix="set model.attention=sdpa, or install it")


def _check_deepspeed(config: Config) -> None:
    if config.train.whole_model is not True:
        read_ds_config(config)


def _cache(config: Config, shape: PreTrainedModel) -> Cache | None:
    """The cache that these settings were answered with before, if the base can read it."""
    cache = remembered(config)
    if cache is not None:
        check_readable(config, cache, shape)
    return cache


def _check_begun(config: Config) -> None:
    run = RunDirectory(config.run_dir)
    if run.begun:
        run.check(config, train=config.recipe.trains)
        run.check_base(config)


def _base(config: Config, shape: PreTrainedModel) -> str:
    stored = config.model.dtype if config.model.quantization == "none" else config.model.quantization
    return f"base      {type(shape).__name__}, {shape.num_parameters():,} parameters in {stored}"


def _training(config: Config, shape: PreTrainedModel, cache: Cache | None) -> list[str]:
    if not config.recipe.trains:
        return ["training  none: the base itself is asked"]
    train = config.train
    steps = f"the steps of {train.epochs:g} epochs" if train.steps is None else f"{train.steps} steps"
    if train.steps is None and cache is not None:
        steps = f"{number_of_steps(train, open_order(config, cache))} steps ({train.epochs:g} epochs)"
    size = f"{train.batch_size} examples" if train.batch_tokens is None else f"{train.batch_tokens} tokens"
    trained, held = _trained(config, shape, cache), _HELD[train.whole_model].format(config.deepspeed)
    return [f"trained   {trained}", f"training  {steps} of {size} each", f"engine    {held}"]


_HELD: dict[Any, str] = {
    True: "each rank holds the whole base; deepspeed={} is ignored",
    False: "the base is sharded over the ranks (ZeRO-3, deepspeed={})",
    "auto": "each rank holds the whole base if there is only one rank, or if it fits; else ZeRO-3 (deepspeed={})",
}
"""By train.whole_model."""


def _trained(config: Config, shape: PreTrainedModel, cache: Cache | None) -> str:
    """The parameters that train; the base's shape becomes that of the whole model."""
    ranked = config.train.objective == "labels"
    head_unknown = config.adapter.train_head and ranked and cache is None
    with torch.device("meta"):
        model = inject_adapter(shape, config.adapter, sources=config.sources, seed=config.train.seed)
        if config.adapter.train_head and not head_unknown:
            use_head(shape, label_tokens=cache.label_tokens if cache and ranked else None, trained=True)
        number = count_trainable(TwoStreamModel(model, config, make_projection(shape, config)))
    return f"{number:,} parameters" + (", and the head's of the label words" if head_unknown else "")


def _rows(config: Config, cache: Cache | None) -> str:
    if cache is None:
        first = "translated and tokenized" if config.task.is_translated else "tokenized"
        return f"rows      to be {first} first, into {config.cache_dir}"
    rows = ", ".join(f"{split.rows:,} {name}" for name, split in cache.manifest.splits.items())
    return f"rows      {rows}, in {cache.path}"


def _progress(config: Config) -> str:
    run = RunDirectory(config.run_dir)
    done = "scored" if run.finished else "trained" if run.trained else run.progress(config) if run.begun else "new"
    return f"run       {run.path}: {done}"
