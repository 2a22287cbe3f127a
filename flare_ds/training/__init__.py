"""Training: the loop, what it is fed with, its schedule, its checkpoints, its records."""
