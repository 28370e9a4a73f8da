"""Finite horizons exactly: optimal values and values of policies by backward induction, and a step that is seen.

With a finite horizon the best action depends on the steps that are left, so that policies and values here are of
``(step, state)``. Nothing is enumerated: an MDP may have as many trajectories as it likes.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from envs.mdps import EnumerableEnv, EnumerableMDP

Floats = npt.NDArray[np.float64]


def optimal_action_values(mdp: EnumerableMDP) -> Floats:
    r"""Exact :math:`Q^*_h(s, a)`, shape ``(horizon, n_states, n_actions)``; 0 in terminal states.

    .. math::
        Q^*_h(s, a) = \sum_{s'} P(s'|s, a) (r(s, a, s') + \gamma \max_{a'} Q^*_{h+1}(s', a')), \qquad Q^*_H = 0
    """
    found = np.zeros((mdp.horizon, mdp.n_states, mdp.n_actions))
    values = np.zeros(mdp.n_states)
    for step in reversed(range(mdp.horizon)):
        found[step] = _look_ahead(mdp, values)
        values = found[step].max(axis=1)
    return found


def optimal_value(mdp: EnumerableMDP) -> float:
    r"""Largest expected return of any policy, :math:`\sum_s p_0(s) \max_a Q^*_0(s, a)`."""
    return float(mdp.initial.numpy() @ optimal_action_values(mdp)[0].max(axis=1))


def policy_value(mdp: EnumerableMDP, policy: Floats) -> float:
    """Exact expected return of a policy.

    Args:
        mdp: The process.
        policy: Probability of each action, shape ``(horizon, n_states, n_actions)``.

    Raises:
        ValueError: Another shape, or probabilities that are negative, NaN or do not sum to 1.
    """
    shape = (mdp.horizon, mdp.n_states, mdp.n_actions)
    if policy.shape != shape:
        raise ValueError(f"policy must have shape (horizon, n_states, n_actions) = {shape}, got {policy.shape}")
    if not (policy >= 0.0).all() or not np.allclose(policy.sum(axis=2), 1.0, atol=1e-6):
        raise ValueError("the probabilities of each step and state must be 0 or more and sum to 1")
    values = np.zeros(mdp.n_states)
    for step in reversed(range(mdp.horizon)):
        values = (policy[step] * _look_ahead(mdp, values)).sum(axis=1)
    return float(mdp.initial.numpy() @ values)


def _look_ahead(mdp: EnumerableMDP, values: Floats) -> Floats:
    targets = mdp.rewards.numpy() + mdp.gamma * values
    expected: Floats = (mdp.transitions.numpy() * targets).sum(axis=2)
    return np.where(mdp.terminal.numpy()[:, None], 0.0, expected)


class StepObservedEnv(EnumerableEnv):
    """The MDP as an environment whose observation is ``step * n_states + state``.

    Step and state are all that an optimal policy has to know. The observation at the horizon is that of the last step:
    nothing follows.

    Args:
        mdp: The process.
    """

    def __init__(self, mdp: EnumerableMDP) -> None:
        super().__init__(mdp)
        self.observation_space = gym.spaces.Discrete(mdp.horizon * mdp.n_states)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Draw a first state."""
        state, info = super().reset(seed=seed, options=options)
        return self._observed(state), info

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Take one step of the process."""
        state, reward, terminated, truncated, info = super().step(action)
        return self._observed(state), reward, terminated, truncated, info

    def _observed(self, state: np.int64) -> np.int64:
        return np.int64(min(self._steps, self.mdp.horizon - 1) * self.mdp.n_states + state)
