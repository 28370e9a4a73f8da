"""What the second part of the study runs."""

from typing import Any

DELAYS = (0, 1, 2, 4, 8)
"""In updates."""

# The agent's defaults, with which d_t is the fresh gradient in the main; and what leaves the memory to the recursion:
# one rollout an update, no action values, and short steps.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "short steps": {"reuse_rollouts": 1, "use_action_values": False, "target_kl": 0.002},
}
# On Pendulum short steps take longer than any delay costs.
TASKS = {"default": ("CartPole-v1", "Pendulum-v1"), "short steps": ("CartPole-v1",)}
# Env steps after which a run is given up.
BUDGETS = {"CartPole-v1": 30_000, "Pendulum-v1": 40_000}

FLOORS = ("none", "lag", "step", "0.1", "0.5", "no memory")
"""Floors of momentum: none; of `DelayedRecursion`; its former one; constants; and 1, with which nothing is remembered.

The former one is ``min(1, sqrt(delay) * last_step ** 0.25)``, of the length of the last step in the policy's metric.
"""
BASE = "none"
"""What floors are compared with."""
