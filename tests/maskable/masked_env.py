"""An environment of any discrete actions that refuses the forbidden ones."""

from typing import Any

import numpy as np
from gymnasium import spaces

from tests.contract.cases import VECTOR, RandomEnv

ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
}


def places(action: Any, action_space: spaces.Space[Any]) -> list[int]:
    """Where in a mask the choices of ``action`` stand."""
    if isinstance(action_space, spaces.Discrete):
        return [int(action)]
    if isinstance(action_space, spaces.MultiDiscrete):
        return [int(sum(action_space.nvec[:part]) + choice) for part, choice in enumerate(action)]
    return [2 * part + int(choice) for part, choice in enumerate(action)]


def mask_size(action_space: spaces.Space[Any]) -> int:
    if isinstance(action_space, spaces.Discrete):
        return int(action_space.n)
    return sum(action_space.nvec) if isinstance(action_space, spaces.MultiDiscrete) else 2 * action_space.n


def random_mask(action_space: spaces.Space[Any], generator: np.random.Generator) -> np.ndarray:
    """Half of all choices at random, and those of one action."""
    mask = generator.random(mask_size(action_space)) < 0.5
    parts = {
        "Discrete": lambda: generator.integers(action_space.n),  # type: ignore[attr-defined]
        "MultiDiscrete": lambda: [generator.integers(n) for n in action_space.nvec],  # type: ignore[attr-defined]
        "MultiBinary": lambda: generator.integers(2, size=action_space.n),  # type: ignore[attr-defined]
    }
    mask[places(parts[type(action_space).__name__](), action_space)] = True
    return mask


class MaskedEnv(RandomEnv):
    """:class:`RandomEnv` with a random mask in each state; ``step`` refuses what it forbids.

    Args:
        never: A place in the mask that is false in every state.
    """

    def __init__(
        self,
        action_space: spaces.Space[Any] | None = None,
        observation_space: spaces.Space[Any] = VECTOR,
        never: int | None = None,
    ) -> None:
        super().__init__(action_space or spaces.Discrete(4), observation_space)
        self.never = never
        self.mask = np.zeros(0, dtype=bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        result = super().reset(seed=seed, options=options)
        self._draw_mask()
        return result

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.mask[places(action, self.action_space)].all():
            raise AssertionError(f"action {action!r} is forbidden by {self.mask}")
        if isinstance(self.action_space, spaces.MultiBinary):
            action = np.asarray(action, dtype=np.int8)
        result = super().step(action)
        self._draw_mask()
        return result

    def _draw_mask(self) -> None:
        self.mask = random_mask(self.action_space, self.np_random)
        while self.never is not None and self.mask[self.never]:
            self.mask = random_mask(self.action_space, self.np_random)

    def action_masks(self) -> np.ndarray:
        return self.mask
