"""The engine's step: what its optimizer keeps is what a resume brings back."""

from typing import Any

import pytest
import torch

from flare_ds.config import TrainConfig
from flare_ds.runtime.optimizer import CellsAdamW, Learner
from flare_ds.runtime.whole import WholeEngine


def engine_of(**of_groups: Any) -> WholeEngine:
    """One that trains three numbers, with no model around them."""
    numbers = torch.nn.Parameter(torch.ones(3))
    numbers.grad = torch.ones(3)
    engine = WholeEngine.__new__(WholeEngine)
    engine.learners = (Learner(TrainConfig(steps=1), {"lora_A": numbers}),)
    engine.optimizer = CellsAdamW(engine.learners)
    for group in engine.optimizer.param_groups:
        group.update(of_groups)
    return engine


def test_an_optimizer_that_keeps_more_than_a_resume_brings_back_takes_no_step() -> None:
    assert engine_of().step({0: 0.1})[0] == pytest.approx(3**0.5)
    with pytest.raises(AssertionError, match="a resume would lose more"):
        engine_of(amsgrad=True).step({0: 0.1})
