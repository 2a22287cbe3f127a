"""The learning rate, as a function of the step alone, so resuming needs no scheduler state."""

import math

from flare_ds.config import TrainConfig


def learning_rate(step: int, train: TrainConfig, *, steps: int) -> float:
    """Learning rate of optimizer step `step` (0-based) of `steps`: linear warm-up, then the chosen decay to zero."""
    warmup = round(train.warmup_ratio * steps)
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    match train.schedule:
        case "linear":
            share = 1.0 - done
        case "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * done))
        case "constant":
            share = 1.0
    return train.learning_rate * share
