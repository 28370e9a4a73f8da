"""Acrobot-v1, batched."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.envs.classic_control.utils import maybe_parse_reset_bounds
from numpy.typing import NDArray

from envs.batched.base import BatchedEnv, Doubles, Floats


class BatchedAcrobot(BatchedEnv):
    """Swing a two-link arm up by its middle joint (Sutton 1996), after ``gymnasium.envs.classic_control.acrobot``.

    The state is gymnasium's: the first link's angle (rad, 0 hangs down), the second's relative to it, and both angular
    velocities (rad/s); "book" dynamics, one step of fourth-order Runge-Kutta. The arithmetic runs in gymnasium's order
    in float64 save that squares are products there ``pow``, whose last bit may differ: one step agrees to 1e-12 in
    the state, and a trajectory parts from gymnasium's as chaotic ones do.
    """

    env_id = "Acrobot-v1"
    state_size = 4
    reset_dtype = np.float32

    dt = 0.2  # seconds
    LINK_COM_POS = 0.5  # m from the joint; both links' lengths (m), masses (kg) and moments of inertia are 1
    g = 9.8
    MAX_VEL_1 = 4 * np.pi
    MAX_VEL_2 = 9 * np.pi
    AVAIL_TORQUE = (-1.0, 0.0, 1.0)

    _torques = np.array(AVAIL_TORQUE)

    def _initial_state(self, generator: np.random.Generator, options: dict[str, Any] | None) -> Sequence[float]:
        low, high = maybe_parse_reset_bounds(options, -0.1, 0.1)
        return generator.uniform(low=low, high=high, size=4).astype(np.float32)  # type: ignore[return-value]

    def _advance(self, actions: NDArray[Any]) -> tuple[Doubles, NDArray[np.bool_]]:
        torque = self._torques[actions]
        state, dt = self.state, self.dt
        k1 = self._derivative(state, torque)
        k2 = self._derivative(state + dt / 2.0 * k1, torque)
        k3 = self._derivative(state + dt / 2.0 * k2, torque)
        k4 = self._derivative(state + dt * k3, torque)
        state += dt / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)
        angles = state[:2]
        while (over := angles > np.pi).any():
            angles[over] -= 2 * np.pi
        while (under := angles < -np.pi).any():
            angles[under] += 2 * np.pi
        np.clip(state[2], -self.MAX_VEL_1, self.MAX_VEL_1, out=state[2])
        np.clip(state[3], -self.MAX_VEL_2, self.MAX_VEL_2, out=state[3])
        terminated = -np.cos(state[0]) - np.cos(state[1] + state[0]) > 1.0
        return np.where(terminated, 0.0, -1.0), terminated

    def _derivative(self, state: Doubles, torque: Doubles) -> Doubles:
        """The state's time derivative, shape (4, n_envs); Sutton and Barto 1998, section 11.3."""
        # Masses, lengths and moments of inertia are one: factors of one are left out, sums of constants with them stay
        # in gymnasium's order, for each rounds.
        lc = self.LINK_COM_POS
        theta1, theta2, dtheta1, dtheta2 = state
        cos2, sin2 = np.cos(theta2), np.sin(theta2)
        d1 = lc**2 + (1.0 + lc**2 + cos2) + 1.0 + 1.0
        d2 = lc**2 + lc * cos2 + 1.0
        phi2 = lc * self.g * np.cos(theta1 + theta2 - np.pi / 2.0)
        coriolis = -lc * (dtheta2 * dtheta2) * sin2 - dtheta2 * dtheta1 * sin2
        phi1 = coriolis + (lc + 1.0) * self.g * np.cos(theta1 - np.pi / 2) + phi2
        derivative = np.empty_like(state)
        derivative[0] = dtheta1
        derivative[1] = dtheta2
        derivative[3] = (torque + d2 / d1 * phi1 - lc * (dtheta1 * dtheta1) * sin2 - phi2) / (
            lc**2 + 1.0 - d2 * d2 / d1
        )
        derivative[2] = -(d2 * derivative[3] + phi1) / d1
        return derivative

    def _observe(self, state: Floats) -> NDArray[np.float32]:
        observations = np.empty((state.shape[1], 6), dtype=np.float32)
        observations[:, 0:4:2] = np.cos(state[:2]).T
        observations[:, 1:4:2] = np.sin(state[:2]).T
        observations[:, 4:] = state[2:].T
        return observations
