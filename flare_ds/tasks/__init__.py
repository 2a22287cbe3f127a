"""Tasks: where their rows come from, how they become prompts, how they are scored."""

from flare_ds.tasks.base import TASKS, Row, Task
from flare_ds.tasks.multiemo import MultiEmo  # importing a task registers it

__all__ = ["TASKS", "MultiEmo", "Row", "Task"]
