r"""A linear-quadratic task with a Gaussian policy, whose objective and gradient are exact.

.. math::
    s_{t+1} = A s_t + B a_t + \epsilon_t, \quad a_t \sim N(K s_t, \sigma^2 I), \quad
    r_t = -s_t^\top Q s_t - a_t^\top R a_t

Under a linear policy the second moment of the state is :math:`M_{t+1} = (A + BK) M_t (A + BK)^\top + \sigma^2
B B^\top + W`, so the expected reward of a step is :math:`-\mathrm{tr}(Q M_t) - \mathrm{tr}(R (K M_t K^\top +
\sigma^2 I))` and ``J`` is a finite sum of smooth functions of ``K`` and ``log sigma``.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LinearQuadratic:
    """The task's matrices, float64; ``n`` state and ``m`` action dimensions.

    Args:
        dynamics: ``A``, shape ``(n, n)``.
        control: ``B``, shape ``(n, m)``.
        state_cost: ``Q``, shape ``(n, n)``.
        action_cost: ``R``, shape ``(m, m)``.
        initial_std: Standard deviation of each coordinate of the first state, which is Gaussian with mean 0.
        noise_std: Standard deviation of each coordinate of the transition noise.
        horizon: Number of steps of every episode.
        gamma: Discount in [0, 1].
    """

    dynamics: Tensor
    control: Tensor
    state_cost: Tensor
    action_cost: Tensor
    initial_std: float
    noise_std: float
    horizon: int
    gamma: float

    def objective(self, gain: Tensor, log_std: Tensor) -> Tensor:
        """Exact ``J`` of the policy ``N(K s, sigma^2 I)``: a scalar, differentiable.

        Args:
            gain: ``K``, shape ``(m, n)``.
            log_std: ``log sigma``, a scalar.
        """
        n, m = self.control.shape
        variance = (2 * log_std).exp()
        closed_loop = self.dynamics + self.control @ gain
        added = variance * self.control @ self.control.T
        added = added + self.noise_std**2 * torch.eye(n, dtype=torch.float64)
        moment = self.initial_std**2 * torch.eye(n, dtype=torch.float64)
        total = torch.zeros((), dtype=torch.float64)
        for step in range(self.horizon):
            actions = gain @ moment @ gain.T + variance * torch.eye(m, dtype=torch.float64)
            reward = -torch.trace(self.state_cost @ moment) - torch.trace(self.action_cost @ actions)
            total = total + self.gamma**step * reward
            moment = closed_loop @ moment @ closed_loop.T + added
        return total

    def gradient(self, gain: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        """Exact gradient of ``J`` with respect to ``K`` and ``log sigma``."""
        gain = gain.detach().clone().requires_grad_(True)
        log_std = log_std.detach().clone().requires_grad_(True)
        by_gain, by_log_std = torch.autograd.grad(self.objective(gain, log_std), (gain, log_std))
        return by_gain, by_log_std


def double_integrator(horizon: int = 10, gamma: float = 0.95) -> LinearQuadratic:
    """A point mass pushed by a force, in two state dimensions; unstable without control."""
    return LinearQuadratic(
        dynamics=torch.tensor([[1.0, 0.2], [0.0, 1.0]], dtype=torch.float64),
        control=torch.tensor([[0.0], [0.2]], dtype=torch.float64),
        state_cost=torch.eye(2, dtype=torch.float64),
        action_cost=0.1 * torch.eye(1, dtype=torch.float64),
        initial_std=1.0,
        noise_std=0.05,
        horizon=horizon,
        gamma=gamma,
    )


class LinearQuadraticEnv(gym.Env[Array, Array]):
    """The task as a gymnasium environment with unbounded observations and actions bounded by ``max_action``.

    The exact objective knows no bound, so a bound must be far out if the two are compared. Reaching the
    horizon terminates: it belongs to the objective.

    Args:
        task: The matrices.
        max_action: Bound of each action coordinate, in the units of the action.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium declares it so.

    def __init__(self, task: LinearQuadratic, max_action: float = 100.0) -> None:
        self.task = task
        self._matrices = tuple(
            np.asarray(matrix) for matrix in (task.dynamics, task.control, task.state_cost, task.action_cost)
        )
        n, m = task.control.shape
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (n,), np.float64)
        self.action_space = gym.spaces.Box(-max_action, max_action, (m,), np.float64)
        self._state = np.zeros(n)
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Draw a first state."""
        super().reset(seed=seed)
        self._state = self.task.initial_std * self.np_random.standard_normal(len(self._state))
        self._steps = 0
        return self._state.copy(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Pay for state and action, then move."""
        dynamics, control, state_cost, action_cost = self._matrices
        state, action = self._state, np.asarray(action, dtype=np.float64)
        reward = -float(state @ state_cost @ state) - float(action @ action_cost @ action)
        noise = self.task.noise_std * self.np_random.standard_normal(len(state))
        self._state = dynamics @ state + control @ action + noise
        self._steps += 1
        return self._state.copy(), reward, self._steps >= self.task.horizon, False, {}
