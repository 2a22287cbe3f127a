"""Opening a two-stream model to run: whole in this process, or in the shards of all ranks (DeepSpeed's ZeRO-3).

    training, deciding by          train.whole_model
      auto (the default)           whole in a process that works alone, and where the base with its adapter and the
                                   largest micro-batch fits on every rank; sharded otherwise
    scoring, deciding by           evaluate.whole_model
      auto (the default)           whole in a process that works alone; on several ranks where each has room for twice
                                   the base; sharded otherwise
    either
      true                         whole on every rank
      false                        sharded

A whole model has no collective in a forward (a sharded one gathers the base, layer by layer, for each), and needs no
DeepSpeed, which is imported only where a model is sharded or several ranks meet.
"""

import sys
from collections.abc import Sequence

from transformers import PreTrainedModel

from flare_ds.config import Config
from flare_ds.runtime.engine import AdapterSource, Engine, RunningModel, check_model
from flare_ds.runtime.filled import learners_of, open_whole, whole_model
from flare_ds.runtime.joining import join_if_launched, join_process_group
from flare_ds.runtime.memory import Load, check_memory, check_whole_model, joint_memory, whole_model_problem
from flare_ds.runtime.process_group import device, gather_objects, rank, world_size
from flare_ds.runtime.rank_zero import agreed
from flare_ds.runtime.whole import WholeEngine
from flare_ds.shipped import AUTO


def open_model(
    config: Config,
    *,
    shape: PreTrainedModel,
    label_tokens: list[list[int]],
    adapter: AdapterSource | None = None,
) -> RunningModel:
    """Load the base and add the adapter, to be asked; a collective.

    Args:
        config: the run's settings.
        shape: the base on the meta device.
        label_tokens: token ids of each label word.
        adapter: gives the values to start from, by parameter name; None: a fresh adapter.

    Raises:
        ConfigError: see `check_model`, `open_sharded` and `build_model`.
        HostError: it is to be whole, but does not fit.
    """
    join_if_launched()
    agreed(check_model, config, shape)
    if _is_whole(config, shape):
        return open_whole(config, label_tokens=label_tokens, adapter=adapter, device=device())
    join_process_group()
    from flare_ds.runtime.sharded import open_sharded

    return open_sharded(config, shape=shape, label_tokens=label_tokens, adapter=adapter)


def open_engine(
    configs: Sequence[Config],
    *,
    shape: PreTrainedModel,
    label_tokens: list[list[int]],
    whole: bool,
    adapters: Sequence[AdapterSource | None] = (None,),
) -> Engine:
    """Load the base, add the adapter of each cell, make their optimizer; a collective.

    Whether the settings fit the base is known by then: see `check_model`. For the arguments see `open_model` and
    `trains_whole`.
    """
    join_if_launched()
    if whole:
        model = whole_model(configs, label_tokens=label_tokens, adapters=adapters, device=device())
        return WholeEngine(model, learners_of(model, configs))
    join_process_group()
    from flare_ds.runtime.sharded import open_sharded_engine

    return open_sharded_engine(configs, shape=shape, label_tokens=label_tokens, adapters=adapters)


def trains_whole(config: Config, shape: PreTrainedModel, load: Load) -> bool:
    """Whether every rank is to hold the whole base while it trains; rank 0 says so, and why; a collective.

    Raises:
        HostError: what is to be held does not fit.
    """
    whole, why = holds_whole(config, shape, load)
    agreed(check_memory, config, shape, load, whole=whole)
    if rank() == 0:
        idle = f"; deepspeed={config.deepspeed} is ignored" if whole and config.deepspeed != AUTO else ""
        held = "each rank holds the whole base" if whole else f"the base is sharded over {world_size()} ranks (ZeRO-3)"
        print(f"{held}: {why}{idle}", file=sys.stderr, flush=True)
    return whole


def holds_whole(config: Config, shape: PreTrainedModel, load: Load) -> tuple[bool, str]:
    """The same for a run alone, and why; nothing is refused or told."""
    wanted = config.train.whole_model
    if wanted != "auto":
        return wanted, f"train.whole_model={str(wanted).lower()}"
    if world_size() == 1:
        return True, "there is one rank"
    size = agreed(joint_memory, [config], shape, [load], whole=True)
    too_large = next((other for other in gather_objects(size) if not other.fits), None)
    return too_large is None, f"it {too_large or size}"


def _is_whole(config: Config, shape: PreTrainedModel) -> bool:
    """Whether every rank is to hold the whole base while it is asked; a collective."""
    wanted = config.evaluate.whole_model
    if wanted == "auto" and world_size() > 1:
        # What can be shared out is to leave room for large batches.
        return not any(gather_objects(agreed(whole_model_problem, config, shape, device(), bases=2)))
    if wanted:
        agreed(check_whole_model, config, shape)
    return bool(wanted)
