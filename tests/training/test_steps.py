"""What is recorded of the parts of a step: the time of each is its own."""

import time
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from flare_ds.runtime.engine import make_room, trainable_parameters
from flare_ds.settings import load_config
from flare_ds.training.run import open_run
from tests.toy import toy_settings, write_config
from tests.training.alone import Trainer

DELAY = 0.2


def wait(*_: Any) -> None:
    time.sleep(DELAY)


def slow_forward(model: nn.Module) -> None:
    model.register_forward_hook(wait)


def slow_backward(model: nn.Module) -> None:
    next(iter(trainable_parameters(model).values())).register_hook(wait)


@pytest.mark.parametrize(("slow", "part"), [(slow_forward, "forward_seconds"), (slow_backward, "backward_seconds")])
def test_the_time_of_each_part_is_its_own(tmp_path: Path, slow: Any, part: str) -> None:
    config = load_config(write_config(toy_settings(tmp_path, name="alone", steps=4, whole_model=True)))
    trainer = Trainer(config, open_run(config, train=True))
    slow(trainer.engine.model)
    values = trainer.step(0)
    assert values[part] >= DELAY
    assert not {"gathers", "gathered_bytes"} & values.keys(), "this process holds the whole base"
    make_room()
