"""The learning rate against values worked out by hand."""

import pytest

from flare_ds.config import TrainConfig
from flare_ds.training.schedule import learning_rate

CASES = [
    ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    ("constant", [0.25, 0.5, 0.75, 1.0, 1, 1, 1, 1, 1, 1]),
    ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.9330127, 0.75, 0.5, 0.25, 0.0669873]),
]


@pytest.mark.parametrize(("schedule", "expected"), CASES)
def test_warm_up_then_decay(schedule: str, expected: list[float]) -> None:
    train = TrainConfig(steps=10, learning_rate=2.0, schedule=schedule, warmup_ratio=0.4)
    assert [learning_rate(step, train, steps=train.steps) / 2.0 for step in range(10)] == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize(("ratio", "expected"), [(0.33, [1 / 3, 2 / 3, 1, 1]), (0.37, [1 / 4, 2 / 4, 3 / 4, 1])])
def test_a_warm_up_is_rounded_to_the_nearest_step(ratio: float, expected: list[float]) -> None:
    train = TrainConfig(steps=10, learning_rate=1.0, schedule="constant", warmup_ratio=ratio)
    assert [learning_rate(step, train, steps=10) for step in range(4)] == pytest.approx(expected)


def test_no_warm_up() -> None:
    train = TrainConfig(steps=4, learning_rate=1.0, warmup_ratio=0.0)
    assert [learning_rate(step, train, steps=train.steps) for step in range(4)] == pytest.approx([1.0, 0.75, 0.5, 0.25])
