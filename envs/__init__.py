"""The benchmark's tasks, batched re-implementations of some, and small MDPs whose exact gradient is known."""

from envs import minatar as minatar  # Registers its environments.
from envs.tasks import OUTSIDE_TASKS, TASKS, Task, get_task

__all__ = ["OUTSIDE_TASKS", "TASKS", "Task", "get_task"]
