"""The frozen base: loading it sharded, running two streams through it, merging into it."""
