"""CartPole-v1, batched."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.envs.classic_control.utils import maybe_parse_reset_bounds
from numpy.typing import NDArray

from envs.batched.base import BatchedEnv, Doubles, Floats


class BatchedCartPole(BatchedEnv):
    """Balance a pole on a cart (Barto, Sutton and Anderson 1983), after ``gymnasium.envs.classic_control.cartpole``.

    The state is gymnasium's: position (m), velocity (m/s), angle (rad), angular velocity (rad/s). The arithmetic runs
    in gymnasium's order in float64, so everything agrees bit for bit.
    """

    env_id = "CartPole-v1"
    state_size = 4

    gravity = 9.8
    masscart = 1.0
    masspole = 0.1
    total_mass = masspole + masscart
    length = 0.5  # half the pole's length
    polemass_length = masspole * length
    force_mag = 10.0
    tau = 0.02  # seconds
    theta_threshold_radians = 12 * 2 * np.pi / 360
    x_threshold = 2.4

    def _initial_state(self, generator: np.random.Generator, options: dict[str, Any] | None) -> Sequence[float]:
        low, high = maybe_parse_reset_bounds(options, -0.05, 0.05)
        return generator.uniform(low=low, high=high, size=4)  # type: ignore[return-value]

    def _advance(self, actions: NDArray[Any]) -> tuple[Doubles, NDArray[np.bool_]]:
        x, x_dot, theta, theta_dot = self.state
        cos, sin = np.cos(theta), np.sin(theta)
        forces = np.where(actions == 1, self.force_mag, -self.force_mag)
        temp = (forces + self.polemass_length * (theta_dot * theta_dot) * sin) / self.total_mass
        theta_acceleration = (self.gravity * sin - cos * temp) / (
            self.length * (4.0 / 3.0 - self.masspole * (cos * cos) / self.total_mass)
        )
        x_acceleration = temp - self.polemass_length * theta_acceleration * cos / self.total_mass
        # In place on rows of the state; positions first, for they move with the old velocities.
        x += self.tau * x_dot
        x_dot += self.tau * x_acceleration
        theta += self.tau * theta_dot
        theta_dot += self.tau * theta_acceleration
        terminated = (np.abs(x) > self.x_threshold) | (np.abs(theta) > self.theta_threshold_radians)
        return np.ones(self.num_envs), terminated

    def _observe(self, state: Floats) -> NDArray[np.float32]:
        return state.T.astype(np.float32)
