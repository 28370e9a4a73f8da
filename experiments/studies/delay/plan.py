"""What the second part of the study runs."""

from enum import StrEnum
from typing import Any

DELAYS = (0, 1, 2, 4, 8)
"""In updates."""


class Setting(StrEnum):
    """Arguments of the agent."""

    DEFAULT = "default"
    """With its defaults ``d_t`` is the fresh gradient in the main."""
    SHORT_STEPS = "short steps"
    """What leaves the memory to the recursion: one rollout an update, no action values, and short steps."""


ARGUMENTS: dict[Setting, dict[str, Any]] = {
    Setting.DEFAULT: {},
    Setting.SHORT_STEPS: {"reuse_rollouts": 1, "use_action_values": False, "target_kl": 0.002},
}
# On Pendulum short steps take longer than any delay costs.
TASKS = {Setting.DEFAULT: ("CartPole-v1", "Pendulum-v1"), Setting.SHORT_STEPS: ("CartPole-v1",)}
# Env steps after which a run is given up.
BUDGETS = {"CartPole-v1": 30_000, "Pendulum-v1": 40_000}

FLOORS = ("none", "rule", "lag", "0.1", "0.5", "no memory")
"""Floors of momentum: none; `DelayedRecursion`'s; that of a running mean; constants; and 1: nothing is remembered."""
RULE = "rule"
BASE = "none"
"""What floors are compared with."""
