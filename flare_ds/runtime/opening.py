"""Opening a two-stream model to run: whole in this process, or sharded under the DeepSpeed engine.

    training                       sharded
    scoring, deciding by           evaluate.whole_model
      auto (the default)           whole where one process works alone and the base fits; sharded otherwise
      true                         whole on every rank
      false                        sharded

Decoding under ZeRO-3 gathers the base for every token; a whole model has no collective in a forward, and needs no
DeepSpeed, which is imported only then.
"""

from functools import partial

from transformers import PreTrainedModel

from flare_ds.config import Config
from flare_ds.runtime.engine import AdapterSource, RunningModel, check_model, open_whole
from flare_ds.runtime.joining import join_if_launched, join_process_group
from flare_ds.runtime.memory import check_whole_model, whole_model_problem
from flare_ds.runtime.process_group import device, world_size
from flare_ds.runtime.rank_zero import agreed


def open_model(
    config: Config,
    *,
    shape: PreTrainedModel,
    label_tokens: list[list[int]],
    adapter: AdapterSource | None = None,
    train: bool = True,
) -> RunningModel:
    """Load the base, add the adapter, start the engine where one is needed; a collective.

    Args:
        config: the run's settings.
        shape: the base on the meta device.
        label_tokens: token ids of each label word.
        adapter: gives the values to start from, by parameter name; None: a fresh adapter.
        train: whether an optimizer is made; without, the engine only shards and gathers.

    Raises:
        ConfigError: see `check_adapter`, `check_mixup`, `check_streams`, `open_sharded` and `build_model`.
        HostError: evaluate.whole_model=true, but the base does not fit.
    """
    join_process_group() if train else join_if_launched()
    agreed(partial(check_model, config, shape))
    if not train and agreed(partial(_is_whole, config, shape)):
        return open_whole(config, label_tokens=label_tokens, adapter=adapter, device=device())
    join_process_group()
    from flare_ds.runtime.sharded import open_sharded

    return open_sharded(config, shape=shape, label_tokens=label_tokens, adapter=adapter, train=train)


def _is_whole(config: Config, shape: PreTrainedModel) -> bool:
    """Whether every rank is to hold the whole base."""
    if config.evaluate.whole_model == "auto":
        return world_size() == 1 and whole_model_problem(config, shape, device()) is None
    if config.evaluate.whole_model:
        check_whole_model(config, shape)
    return config.evaluate.whole_model
