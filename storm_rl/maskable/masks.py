"""Action masks: checked, and carried along as one more entry of the observation that each belongs to."""

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor

# The entries of an observation with its mask. No Dict observation that the policies read has a dot in a key.
MASKS = "env.action_masks"
OBSERVATION = "env.observation"


def with_masks(observation: Any, masks: Any) -> dict[str, Any]:
    """An observation, Dict or not, or a batch of them, with the masks as one more entry."""
    entries = observation if isinstance(observation, dict) else {OBSERVATION: observation}
    return {**entries, MASKS: masks}


def split_masks(observation: Any) -> tuple[Any, Any]:
    """The observation as the environment gave it, and the masks; None where it has none."""
    if not isinstance(observation, dict) or MASKS not in observation:
        return observation, None
    entries = {key: part for key, part in observation.items() if key != MASKS}
    return entries.get(OBSERVATION, entries), observation[MASKS]


def space_with_masks(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> spaces.Dict:
    """The space of what :func:`with_masks` gives."""
    entries = observation_space.spaces if isinstance(observation_space, spaces.Dict) else observation_space
    return spaces.Dict(with_masks(entries, spaces.MultiBinary(sum(choices(action_space)))))


def choices(action_space: spaces.Space[Any]) -> list[int]:
    """The number of choices in each part of an action; a mask, as sb3-contrib has it, is as long as all together.

    Raises:
        TypeError: Box actions.
    """
    if isinstance(action_space, spaces.Discrete):
        return [int(action_space.n)]
    if isinstance(action_space, spaces.MultiDiscrete):
        return [int(n) for n in action_space.nvec]
    if isinstance(action_space, spaces.MultiBinary):
        return [2] * int(np.prod(action_space.shape))  # 0 and 1.
    raise TypeError(
        f"action space {action_space} has no masks: Discrete, MultiDiscrete and MultiBinary have; use STORMPlusPG."
    )


def check_masks(masks: Any, action_space: spaces.Space[Any], n: int) -> npt.NDArray[np.bool_]:
    """The masks of ``n`` states as booleans, ``(n, sum(choices(action_space)))``.

    Raises:
        ValueError: Another size, or a state in which a part of the action has no allowed choice.
    """
    sizes = choices(action_space)
    right = f"{sum(sizes)} booleans for each of {n}, flat, for actions of {action_space}"
    try:
        array = np.asarray(masks.cpu() if isinstance(masks, Tensor) else masks, dtype=bool)
    except (TypeError, ValueError) as error:
        raise ValueError(f"action masks must be {right}; got {masks!r}.") from error
    if array.size != n * sum(sizes):
        raise ValueError(f"action masks must be {right}; got shape {array.shape}.")
    array = array.reshape(n, sum(sizes))
    allowed = np.logical_or.reduceat(array, np.cumsum([0, *sizes[:-1]]), axis=1)
    if not allowed.all():
        index, part = np.argwhere(~allowed)[0]
        raise ValueError(
            f"action mask {index} of {n} forbids all {sizes[part]} choices of part {part} of the action, and one must "
            f"be left: {array[index].astype(int)}."
        )
    return array


class MaskedObservations(VecEnvWrapper):
    """Environments whose observations come with the mask of the actions allowed next.

    Terminal observations stay plain: they are only valued, and no action follows.

    Args:
        venv: Environments with a method ``action_masks()``.
        use_masking: False: every action is allowed, and the method is not called.

    Raises:
        ValueError: There is no such method, or it gives no mask of the action space.
    """

    def __init__(self, venv: VecEnv, use_masking: bool = True) -> None:
        super().__init__(venv, observation_space=space_with_masks(venv.observation_space, venv.action_space))
        self.use_masking = use_masking
        if use_masking and not venv.has_attr("action_masks"):
            raise ValueError(
                "Environment does not support action masking, it has no method action_masks(). Consider using "
                "sb3_contrib's ActionMasker wrapper, or learn(use_masking=False)."
            )

    def reset(self) -> Any:
        """The first observations."""
        return self.with_masks(self.venv.reset())

    def step_wait(self) -> VecEnvStepReturn:
        """As SB3's."""
        observations, rewards, dones, infos = self.venv.step_wait()
        return self.with_masks(observations), rewards, dones, infos

    def with_masks(self, observations: Any) -> dict[str, Any]:
        """These observations with the masks of the environments as they stand now."""
        masks: Any = np.ones((self.num_envs, sum(choices(self.action_space))), dtype=bool)
        if self.use_masking:
            masks = check_masks(self.venv.env_method("action_masks"), self.action_space, self.num_envs)
        return with_masks(observations, masks.astype(np.int8))  # The type of a MultiBinary space.


class MaskableRolloutBuffer(DictRolloutBuffer):
    """SB3's buffer of Dict observations, whose entries are the environment's and the mask.

    ``observation_space`` is the environment's, Dict or not; other arguments are SB3's.
    """

    def __init__(
        self, buffer_size: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], **kwargs: Any
    ) -> None:
        super().__init__(buffer_size, space_with_masks(observation_space, action_space), action_space, **kwargs)
