"""The benchmark's tasks, batched re-implementations of some, and small MDPs whose exact gradient is known."""

from envs import minatar as minatar  # These two register their environments.
from envs import toy_text as toy_text
from envs.tasks import OUTSIDE_TASKS, TASKS, Suite, Task, get_task

__all__ = ["OUTSIDE_TASKS", "TASKS", "Suite", "Task", "get_task"]
