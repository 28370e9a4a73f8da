"""The benchmark's tasks, batched re-implementations of them, and small MDPs whose exact gradient is known."""

from envs.tasks import TASKS, Task, get_task

__all__ = ["TASKS", "Task", "get_task"]
