"""MountainCar-v0 and MountainCarContinuous-v0, batched."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.envs.classic_control.utils import maybe_parse_reset_bounds
from numpy.typing import NDArray

from envs.batched.base import BatchedEnv, Doubles, Floats


class _MountainCar(BatchedEnv):
    """What the two share. The state is gymnasium's: position (m) and velocity (m per step)."""

    state_size = 2

    min_position = -1.2
    max_position = 0.6
    max_speed = 0.07
    goal_position: float
    goal_velocity = 0.0
    gravity = 0.0025

    def _initial_state(self, generator: np.random.Generator, options: dict[str, Any] | None) -> Sequence[float]:
        low, high = maybe_parse_reset_bounds(options, -0.6, -0.4)
        return generator.uniform(low=low, high=high), 0.0

    def _move(self, position: Floats, velocity: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Position and velocity after a step at that velocity, in their own dtype, and whether the goal is reached."""
        velocity = np.minimum(np.maximum(velocity, -self.max_speed), self.max_speed)
        position = np.minimum(np.maximum(position + velocity, self.min_position), self.max_position)
        velocity[(position == self.min_position) & (velocity < 0)] = 0.0  # the left wall is inelastic
        return position, velocity, (position >= self.goal_position) & (velocity >= self.goal_velocity)

    def _observe(self, state: Floats) -> NDArray[np.float32]:
        return state.T.astype(np.float32)


class BatchedMountainCar(_MountainCar):
    """Drive an underpowered car uphill (Moore 1990), after ``gymnasium.envs.classic_control.mountain_car``.

    The arithmetic runs in gymnasium's order in float64, so everything agrees bit for bit, as long as numpy's cosine is
    libm's (NumPy 2 on the platforms tried), for gymnasium takes `math.cos` here.
    """

    env_id = "MountainCar-v0"
    goal_position = 0.5
    force = 0.001

    def _advance(self, actions: NDArray[Any]) -> tuple[Doubles, NDArray[np.bool_]]:
        position, velocity = self.state
        velocity = velocity + ((actions - 1) * self.force + np.cos(3 * position) * (-self.gravity))
        self.state[0], self.state[1], terminated = self._move(position, velocity)
        return np.full(self.num_envs, -1.0), terminated


class BatchedMountainCarContinuous(_MountainCar):
    """The car with a continuous force, after ``gymnasium.envs.classic_control.continuous_mountain_car``.

    Everything agrees bit for bit as in `BatchedMountainCar`, given NumPy 2's promotion rules. gymnasium's arithmetic is
    float32 here, save for an episode's first step: its ``reset`` leaves a float64 state, its ``step`` a float32 one.
    """

    env_id = "MountainCarContinuous-v0"
    goal_position = 0.45
    power = 0.0015

    def _advance(self, actions: NDArray[Any]) -> tuple[Doubles, NDArray[np.bool_]]:
        actions = actions[:, 0]
        first = np.flatnonzero(self._lengths == 0)
        first_state = self.state[:, first]
        position, velocity, terminated = self._drive(self.state.astype(np.float32), actions)
        if first.size:
            position[first], velocity[first], terminated[first] = self._drive(first_state, actions[first])
        self.state[0], self.state[1] = position, velocity
        # The whole action is charged for, also what the clip takes from the force.
        cost = actions.astype(np.float64) ** 2 * 0.1
        return np.where(terminated, 100.0, 0.0) - cost, terminated

    def _drive(self, state: Floats, actions: NDArray[np.float32]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        position, velocity = state
        slope = self.gravity * np.cos((3 * position).astype(np.float64))
        change = (actions * self.power - slope.astype(np.float32)).astype(position.dtype)
        clipped = np.abs(actions) > 1.0
        if clipped.any():
            # Clipping gives a Python float in gymnasium, and so a difference in float64, rounded where it is added.
            change[clipped] = np.sign(actions[clipped]).astype(np.float64) * self.power - slope[clipped]
        return self._move(position, velocity + change)
