"""Sweeps: the grid a YAML declares, the cells it becomes, and running them."""
