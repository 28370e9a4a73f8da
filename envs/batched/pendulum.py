"""Pendulum-v1, batched."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.envs.classic_control.pendulum import DEFAULT_X, DEFAULT_Y
from gymnasium.envs.classic_control.utils import verify_number_and_cast
from numpy.typing import NDArray

from envs.batched.base import BatchedEnv, Doubles, Floats


class BatchedPendulum(BatchedEnv):
    """Swing a pendulum up and hold it, after ``gymnasium.envs.classic_control.pendulum``.

    The state is gymnasium's: angle (rad, 0 is upright, not wrapped) and angular velocity (rad/s). States agree bit for
    bit; rewards to 1e-8, since gymnasium squares by ``pow``, whose last bit may differ from a product's, and squares
    the torque in float32.
    """

    env_id = "Pendulum-v1"
    state_size = 2

    max_speed = 8
    max_torque = 2.0
    dt = 0.05  # seconds
    g = 10.0
    m = 1.0
    l = 1.0  # noqa: E741
    inverse_inertia = 3.0 / (m * l**2)

    def _initial_state(self, generator: np.random.Generator, options: dict[str, Any] | None) -> Sequence[float]:
        options = options or {}
        angle = verify_number_and_cast(options.get("x_init", DEFAULT_X))
        velocity = verify_number_and_cast(options.get("y_init", DEFAULT_Y))
        # gymnasium draws both in one call with arrays of bounds: the same numbers, three times as slowly.
        return generator.uniform(-angle, angle), generator.uniform(-velocity, velocity)

    def _advance(self, actions: NDArray[Any]) -> tuple[Doubles, NDArray[np.bool_]]:
        theta, theta_dot = self.state
        # The torque stays float32, as in gymnasium: its terms are rounded to float32 before they are added.
        torque = np.clip(actions[:, 0], -self.max_torque, self.max_torque)
        angle = (theta + np.pi) % (2 * np.pi) - np.pi
        costs = angle * angle + 0.1 * (theta_dot * theta_dot) + 0.001 * (torque * torque)
        acceleration = 3 * self.g / (2 * self.l) * np.sin(theta) + self.inverse_inertia * torque
        theta_dot += acceleration * self.dt
        np.clip(theta_dot, -self.max_speed, self.max_speed, out=theta_dot)
        theta += theta_dot * self.dt
        return -costs, np.zeros(self.num_envs, dtype=np.bool_)

    def _observe(self, state: Floats) -> NDArray[np.float32]:
        observations = np.empty((state.shape[1], 3), dtype=np.float32)
        observations[:, 0] = np.cos(state[0])
        observations[:, 1] = np.sin(state[0])
        observations[:, 2] = state[1]
        return observations

    def _prepare_renderer(self, renderer: Any, index: int) -> None:
        super()._prepare_renderer(renderer, index)
        # The arrow that shows the torque; there is none before the first step of an episode.
        torque = np.clip(self._actions[index, 0], -self.max_torque, self.max_torque)
        renderer.last_u = torque if self._lengths[index] else None
