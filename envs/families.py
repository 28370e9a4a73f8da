r"""Families of tasks: cart-poles and pendulums whose physical constants are drawn.

A task of a family is gymnasium's CartPole-v1 or Pendulum-v1 with other lengths, masses and forces. With the constants
of `CART_POLE` or `PENDULUM` it is gymnasium's own, step for step. Constants are uniform in the ranges below,
independent of each other. In two of the families the *sign* of the force is drawn as well: what is right in half of the
tasks is wrong in the others, and a state does not tell in which, so that no policy without a memory is good at all.

======================= ============================================ ===================== =====================
constant                what it is                                   gymnasium's           range
======================= ============================================ ===================== =====================
``masscart``            of the cart (kg)                             1                     0.5 to 2
``masspole``            of the pole (kg)                             0.1                   0.05 to 0.5
``length``              half of the pole's (m)                       0.5                   0.25 to 1
``force_mag``           of a push (N)                                10                    5 to 15, or also negative
``m``                   of the pendulum (kg)                         1                     0.7 to 1.3
``l``                   of the pendulum (m)                          1                     0.7 to 1.3
``torque_gain``         torque (N m) for an action of 1 N m          1                     0.7 to 1, or also negative
======================= ============================================ ===================== =====================

>>> from envs.families import FAMILIES
>>> FAMILIES["cart-poles"].make_vec(FAMILIES["cart-poles"].draw(3, seed=0), copies=2).num_envs
6
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from envs.batched.base import BatchedEnv, Doubles
from envs.batched.cart_pole import BatchedCartPole
from envs.batched.pendulum import BatchedPendulum

Constants = Mapping[str, float]

CART_POLE: Constants = {"masscart": 1.0, "masspole": 0.1, "length": 0.5, "force_mag": 10.0}
PENDULUM: Constants = {"m": 1.0, "l": 1.0, "torque_gain": 1.0}


class DrawnCartPole(CartPoleEnv):
    """gymnasium's cart-pole with constants of one's own; those that are missing are gymnasium's.

    Args:
        constants: Some of `CART_POLE`. A negative ``force_mag`` pushes the other way.
        render_mode: As gymnasium's.

    Raises:
        ValueError: An unknown constant, or a value that is not finite, 0, or negative where that is absurd.
    """

    def __init__(self, constants: Constants = CART_POLE, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        for name, value in _complete(constants, CART_POLE).items():
            setattr(self, name, value)
        self.total_mass = self.masspole + self.masscart
        self.polemass_length = self.masspole * self.length


class DrawnPendulum(PendulumEnv):
    """gymnasium's pendulum with constants of one's own; those that are missing are gymnasium's.

    Args:
        constants: Some of `PENDULUM`. Actions are clipped to 2 N m, and then multiplied by ``torque_gain``; what the
            torque costs is that of the product.
        render_mode: As gymnasium's.

    Raises:
        ValueError: As of `DrawnCartPole`; also a gain beyond 1, which the limit of the torque would take back.
    """

    def __init__(self, constants: Constants = PENDULUM, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        complete = _complete(constants, PENDULUM)
        self.m, self.l = complete["m"], complete["l"]
        self.torque_gain = np.float32(complete["torque_gain"])

    def step(self, u: Any) -> Any:
        """As gymnasium's."""
        torque = self.torque_gain * np.clip(u, -self.max_torque, self.max_torque)
        return super().step(torque)  # type: ignore[no-untyped-call]


class _Drawn(BatchedEnv):
    """What the two batches share: a constant is a row with a number for each environment."""

    defaults: Constants

    def __init__(self, constants: Sequence[Constants]) -> None:
        complete = [_complete(each, self.defaults) for each in constants]
        self.constants = {name: np.array([each[name] for each in complete]) for name in self.defaults}
        super().__init__(len(constants))  # No pictures: they would be those of gymnasium's constants.

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """As SB3's; of a constant, that of each environment."""
        if attr_name in self.constants:
            return [float(self.constants[attr_name][index]) for index in self._get_indices(indices)]
        return super().get_attr(attr_name, indices)


class BatchedCartPoles(_Drawn, BatchedCartPole):
    """Cart-poles with constants of their own, stepped together: each is a `DrawnCartPole`, bit for bit.

    Args:
        constants: Those of each environment, as `DrawnCartPole`'s.
    """

    defaults = CART_POLE

    def __init__(self, constants: Sequence[Constants]) -> None:
        super().__init__(constants)
        vars(self).update(self.constants)  # In the place of the class's numbers.
        vars(self)["total_mass"] = self.constants["masspole"] + self.constants["masscart"]
        vars(self)["polemass_length"] = self.constants["masspole"] * self.constants["length"]


class BatchedPendulums(_Drawn, BatchedPendulum):
    """Pendulums with constants of their own, stepped together: each is a `DrawnPendulum`, as of `BatchedPendulum`.

    Args:
        constants: Those of each environment, as `DrawnPendulum`'s.
    """

    defaults = PENDULUM

    def __init__(self, constants: Sequence[Constants]) -> None:
        super().__init__(constants)
        vars(self).update({name: self.constants[name] for name in ("m", "l")})
        # A float times the torque, which is float32, is float32; an array of float64 would not be.
        inverse_inertia = 3.0 / (self.constants["m"] * self.constants["l"] ** 2)
        vars(self)["inverse_inertia"] = inverse_inertia.astype(np.float32)
        self._gains = self.constants["torque_gain"].astype(np.float32)[:, None]

    def _advance(self, actions: NDArray[Any]) -> tuple[Doubles, NDArray[np.bool_]]:
        return super()._advance(self._gains * np.clip(actions, -self.max_torque, self.max_torque))


@dataclass(frozen=True)
class Family:
    """A distribution of tasks.

    Args:
        defaults: gymnasium's constants.
        ranges: Least and largest of each constant that is drawn; the magnitude, if its sign is drawn too.
        signed: The constant whose sign is drawn, each with probability 1/2; None: no sign is.
    """

    defaults: Constants
    ranges: Mapping[str, tuple[float, float]]
    signed: str | None = None

    @property
    def env_id(self) -> str:
        """Gymnasium's task whose constants are drawn."""
        return "CartPole-v1" if self.defaults is CART_POLE else "Pendulum-v1"

    def draw(self, n_tasks: int, seed: int | Sequence[int]) -> list[dict[str, float]]:
        """The constants of ``n_tasks`` tasks; ``seed`` is as of numpy's ``default_rng``.

        Raises:
            ValueError: No tasks.
        """
        if n_tasks < 1:
            raise ValueError(f"n_tasks must be at least 1, got {n_tasks}")
        generator = np.random.default_rng(seed)
        low, high = np.array(list(self.ranges.values())).T
        values = generator.uniform(low, high, (n_tasks, len(self.ranges)))
        tasks = [dict(zip(self.ranges, row, strict=True)) for row in values.tolist()]
        if self.signed is not None:
            for task, sign in zip(tasks, generator.choice([-1.0, 1.0], n_tasks).tolist(), strict=True):
                task[self.signed] *= sign
        return tasks

    def make(self, constants: Constants | None = None, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """One task as an environment with gymnasium's time limit; None: gymnasium's constants."""
        make = DrawnCartPole if self.defaults is CART_POLE else DrawnPendulum
        env: gym.Env[Any, Any] = make(constants or {}, render_mode)
        limit = gym.spec(self.env_id).max_episode_steps
        assert limit is not None
        return TimeLimit(env, limit)

    def make_vec(self, tasks: Sequence[Constants], copies: int = 1, seed: int | None = None) -> BatchedEnv:
        """``copies`` environments of each task, those of one task side by side, as an SB3 ``VecEnv``.

        Raises:
            ValueError: No tasks or no copies.
        """
        if len(tasks) < 1 or copies < 1:
            raise ValueError(f"there must be a task and a copy at least, got {len(tasks)} tasks and {copies} copies")
        make = BatchedCartPoles if self.defaults is CART_POLE else BatchedPendulums
        env = make([task for task in tasks for _ in range(copies)])
        env.seed(seed)
        return env


_CART_POLES = {"masscart": (0.5, 2.0), "masspole": (0.05, 0.5), "length": (0.25, 1.0), "force_mag": (5.0, 15.0)}
_PENDULUMS = {"m": (0.7, 1.3), "l": (0.7, 1.3), "torque_gain": (0.7, 1.0)}

FAMILIES: dict[str, Family] = {
    "cart-poles": Family(CART_POLE, _CART_POLES),
    "cart-poles, either sign": Family(CART_POLE, _CART_POLES, "force_mag"),
    "pendulums": Family(PENDULUM, _PENDULUMS),
    "pendulums, either sign": Family(PENDULUM, _PENDULUMS, "torque_gain"),
}


def _complete(constants: Constants, defaults: Constants) -> dict[str, float]:
    """The constants, with the defaults of those that are missing."""
    if unknown := [name for name in constants if name not in defaults]:
        raise ValueError(f"unknown constant {unknown[0]!r}; known: {', '.join(defaults)}")
    complete = {name: float(constants.get(name, default)) for name, default in defaults.items()}
    for name, value in complete.items():
        signed = name in ("force_mag", "torque_gain")
        if not np.isfinite(value) or value == 0.0 or (value < 0.0 and not signed):
            raise ValueError(f"{name} must be finite and {'not 0' if signed else 'positive'}, got {value}")
    if abs(complete.get("torque_gain", 0.0)) > 1.0:
        raise ValueError(f"torque_gain must be at most 1 in magnitude, got {complete['torque_gain']}")
    return complete
