"""Tasks to train and compare on, one file each, and the registry that lists them."""

from xcope.registry import discover
from xcope.tasks.base import IGNORE, Batch, Task
from xcope.tasks.registry import register, task, tasks

discover(__name__, __path__)

__all__ = ["IGNORE", "Batch", "Task", "register", "task", "tasks"]
