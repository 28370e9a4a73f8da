"""MinAtar's games (Young and Tian 2019, arXiv 1903.03176) as images that SB3's ``CnnPolicy`` reads.

A state of MinAtar is 10 x 10 cells with a boolean channel for each kind of object. Here a cell is four pixels wide, 0
or 255: SB3's ``NatureCNN`` needs 36 x 36. Package ``minatar`` (the extra ``outside``).
"""

import importlib
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

# Games end by their own rules; a policy that stands still may play on for ever.
MAX_EPISODE_STEPS = 5_000
GAMES = {"MinAtarBreakout-v1": "breakout", "MinAtarSpaceInvaders-v1": "space_invaders"}
PIXELS = 4


class MinAtarImages(gym.Env[npt.NDArray[np.uint8], np.int64]):
    """One game, with the actions that do something in it.

    Args:
        game: As MinAtar names it.
        render_mode: As gymnasium's; nothing is drawn.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # SB3 asks for it; nothing is drawn.

    def __init__(self, game: str, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.game = importlib.import_module("minatar").Environment(game)
        self.actions = self.game.minimal_action_set()
        height, width, channels = self.game.state_shape()
        self.observation_space = spaces.Box(0, 255, (channels, height * PIXELS, width * PIXELS), np.uint8)
        self.action_space = spaces.Discrete(len(self.actions))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """As gymnasium's."""
        super().reset(seed=seed)
        if seed is not None:
            self.game.seed(seed)
            self.game.last_action = 0  # May be repeated in place of the first one.
        self.game.reset()
        return self._image(), {}

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """As gymnasium's."""
        reward, terminated = self.game.act(self.actions[action])
        return self._image(), float(reward), bool(terminated), False, {}

    def _image(self) -> npt.NDArray[np.uint8]:
        cells = np.transpose(self.game.state(), (2, 0, 1)).astype(np.uint8) * np.uint8(255)
        return cells.repeat(PIXELS, axis=1).repeat(PIXELS, axis=2)


for _name, _game in GAMES.items():
    gym.register(
        _name, entry_point="envs.minatar:MinAtarImages", kwargs={"game": _game}, max_episode_steps=MAX_EPISODE_STEPS
    )
