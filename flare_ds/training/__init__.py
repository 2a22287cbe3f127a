"""Training on the DeepSpeed engine: the loop, its schedule, its checkpoints, its records."""
