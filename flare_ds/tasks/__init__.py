"""Tasks: where their rows come from, how they become prompts, how they are scored."""

from flare_ds.tasks.base import TASKS, Answer, Row, Task
from flare_ds.tasks.multiemo import MultiEmo  # importing a task registers it
from flare_ds.tasks.nusax import NUSAX
from flare_ds.tasks.squad_hi import SquadHi
from flare_ds.tasks.table import TableTask
from flare_ds.tasks.tydiqa import TYDIQA
from flare_ds.tasks.vitaminc import VitaminC
from flare_ds.tasks.xnli import XNLI

__all__ = ["NUSAX", "TASKS", "TYDIQA", "XNLI", "Answer", "MultiEmo", "Row", "SquadHi", "TableTask", "Task", "VitaminC"]
