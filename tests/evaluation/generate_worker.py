"""One rank of the generation test: the test split decoded with the whole model on every rank, then sharded.

Sharded, its base is gathered once for all tokens, and then for each. Run as
`python -m tests.evaluation.generate_worker CONFIG OUT`; rank 0 writes the answers, and how many gathers there were.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from flare_ds.config import Config
from flare_ds.data.cache import Cache
from flare_ds.evaluation.answerable import with_whole_head
from flare_ds.evaluation.asked import Asked
from flare_ds.evaluation.generate import generate_split
from flare_ds.models.loading import load_shape
from flare_ds.models.partitioned import is_partitioned
from flare_ds.runtime import gathered_base
from flare_ds.runtime.engine import RunningModel
from flare_ds.runtime.gathers import gathers
from flare_ds.runtime.opening import open_model
from flare_ds.runtime.process_group import rank
from flare_ds.settings import load_config
from flare_ds.training.run import open_run

SETTINGS: list[dict] = [
    {"generate": {"max_new_tokens": 6}, "adapter": {"span": "prompt"}},
    {"generate": {"max_new_tokens": 6, "temperature": 1.0, "top_p": 0.9}, "adapter": {"span": "full"}},
    {"generate": {"max_new_tokens": 6}, "method": "x_mixup"},
]


def random_adapter(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: 0.1 * torch.randn(parameter.shape, generator=generator) for name, parameter in parameters.items()}


def answers(config: Config, cache: Cache, whole: bool) -> tuple[list[list[int]], int]:
    """What is answered, and how often was gathered for it, without what loading takes."""
    evaluate = config.evaluate.model_copy(update={"whole_model": whole})
    running: RunningModel = open_model(
        with_whole_head(config.model_copy(update={"evaluate": evaluate})),
        shape=load_shape(config.model),
        label_tokens=cache.label_tokens,
        adapter=random_adapter,
    )
    frozen = [parameter for name, parameter in running.model.named_parameters() if "base_layer" in name]
    assert frozen and all(is_partitioned(parameter) != whole for parameter in frozen)
    assert running.sharded != whole
    before = gathers()["gathers"]
    tokens = [answer.tokens for answer in generate_split(Asked(running, cache, config), "test")]
    return tokens, gathers()["gathers"] - before


def main(config_path: str, out: str) -> None:
    config = load_config(config_path)
    cache = open_run(config, train=True)
    configs = [Config.model_validate(config.model_dump() | settings) for settings in SETTINGS]
    # The whole models first: transformers shards while a sharded model is open.
    told = {"whole": [answers(config, cache, True) for config in configs]}
    for name, fits in {"gathered once": True, "gathered for each token": False}.items():
        gathered_base.fits_whole_beside = lambda model, fits=fits: fits
        told[name] = [answers(config, cache, False) for config in configs]
    found = {name: [tokens for tokens, _ in of_configs] for name, of_configs in told.items()}
    needed = {name: sum(count for _, count in of_configs) for name, of_configs in told.items() if name != "whole"}
    if rank() == 0:
        Path(out).write_text(json.dumps([found, needed]))


if __name__ == "__main__":
    main(*sys.argv[1:])
