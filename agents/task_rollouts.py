"""A policy for each of many tasks, and their episodes, side by side: one array operation for all of them.

Arrays begin with the tasks, ``k``; a task's ``m`` environments and their ``t`` steps follow, as one axis ``m * t``
where nothing asks for them apart.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence

Floats = NDArray[np.floating[Any]]


class Policies:
    """Tanh networks of one shape with Gaussian or categorical actions, and parameters of its own for each task.

    Args:
        action_space: ``Box`` of one scale, whose actions are in units of its largest; or ``Discrete``.
        observation_scale: What observations are divided by, ``(n_inputs,)``.
        hidden: Widths of the hidden layers.

    Attributes:
        n_parameters: Of one task, ``n``.

    Raises:
        ValueError: Another action space.
    """

    def __init__(
        self, action_space: spaces.Space[Any], observation_scale: Sequence[float], hidden: Sequence[int] = (32,)
    ) -> None:
        if not isinstance(action_space, spaces.Box | spaces.Discrete):
            raise ValueError(f"the action space must be Box or Discrete, got {action_space}")
        self.discrete = isinstance(action_space, spaces.Discrete)
        if isinstance(action_space, spaces.Discrete):
            n_outputs, self.action_scale = int(action_space.n), 1.0
        else:
            n_outputs, self.action_scale = int(np.prod(action_space.shape)), float(action_space.high.max())
        self.observation_scale = np.asarray(observation_scale, dtype=np.float32)
        widths = [len(self.observation_scale), *hidden, n_outputs]
        self.shapes = [shape for inputs, outputs in itertools.pairwise(widths)
                       for shape in ((inputs, outputs), (1, outputs))]  # fmt: skip
        if not self.discrete:
            self.shapes.append((1, n_outputs))  # The logarithm of the standard deviation, of all states.
        self.n_parameters = sum(rows * columns for rows, columns in self.shapes)

    def initial(self, seed: int) -> Tensor:
        """Parameters of a new network, ``(n,)``: weights of variance 1 / inputs, 1/100 of it in the last layer."""
        generator = torch.Generator().manual_seed(seed)
        parts = [
            torch.randn(shape, generator=generator) / shape[0] ** 0.5 if shape[0] > 1 else torch.zeros(shape)
            for shape in self.shapes
        ]
        parts[-2 if self.discrete else -3] *= 0.1
        return torch.cat([part.flatten() for part in parts])

    def distribution(self, parameters: Tensor, observations: Tensor) -> Distribution:
        """Of the actions in ``observations``, ``(k, b, n_inputs)``, with ``parameters`` ``(k, n)``."""
        outputs, log_std = self._outputs(parameters, observations)
        if self.discrete:
            return Categorical(logits=outputs)
        return Independent(Normal(outputs, log_std.exp().expand_as(outputs)), 1)

    def kl(self, old: Tensor, new: Tensor, observations: Tensor) -> Tensor:
        """Mean over the states of KL(old || new), in nats, ``(k,)``; differentiable in both parameters."""
        divergence = kl_divergence(self.distribution(old, observations), self.distribution(new, observations))
        return divergence.mean(dim=1)

    def act(self, parameters: Floats, observations: Floats, generator: np.random.Generator) -> NDArray[Any]:
        """Sampled actions, ``(k, m)`` or ``(k, m, n_outputs)``, without a distribution's objects, which take long."""
        outputs, log_std = self._outputs(parameters, observations)
        if self.discrete:
            # Largest of logits with Gumbel noise.
            return np.asarray(np.argmax(outputs + generator.gumbel(size=outputs.shape), axis=-1))
        return np.asarray(outputs + np.exp(log_std) * generator.standard_normal(outputs.shape), dtype=np.float32)

    def _outputs(self, parameters: Any, observations: Any) -> tuple[Any, Any]:
        """Logits or means ``(k, b, n_outputs)``, and log standard deviations; of numpy's arrays or torch's."""
        parts, end = [], 0
        for shape in self.shapes:
            end += shape[0] * shape[1]
            parts.append(parameters[:, end - shape[0] * shape[1] : end].reshape(-1, *shape))
        log_std = parts[-1]
        layers = parts if self.discrete else parts[:-1]
        tanh = torch.tanh if isinstance(parameters, Tensor) else np.tanh
        hidden = observations
        for index in range(0, len(layers), 2):
            hidden = hidden @ layers[index] + layers[index + 1]
            if index + 2 < len(layers):
                hidden = tanh(hidden)
        return hidden, log_std


class Rollouts(NamedTuple):
    """Episodes of ``k`` tasks; what stands behind an episode's end has ``mask`` false."""

    observations: Tensor
    """Scaled, ``(k, m * t, n_inputs)``."""
    actions: Tensor
    """``(k, m * t)`` or ``(k, m * t, n_outputs)``, in units of the policy's scale."""
    log_prob: Tensor
    """Of the policy that acted, ``(k, m * t)``."""
    advantages: Tensor
    """Of mean 0 in each task, in units of the reward scale, ``(k, m * t)``."""
    mask: Tensor
    """Boolean, ``(k, m * t)``."""
    returns: Floats
    """Of each episode, undiscounted, ``(k, m)``."""

    def part(self, first: bool) -> "Rollouts":
        """The first or the second half of each task's environments."""
        half = self.returns.shape[1] // 2
        size = half * (self.mask.shape[1] // self.returns.shape[1])
        chosen = slice(None, size) if first else slice(size, None)
        returns = self.returns[:, :half] if first else self.returns[:, half:]
        return Rollouts(
            self.observations[:, chosen],
            self.actions[:, chosen],
            self.log_prob[:, chosen],
            self.advantages[:, chosen],
            self.mask[:, chosen],
            returns,
        )

    def states(self, size: int, generator: torch.Generator) -> Tensor:
        """``size`` observations of each task, drawn with replacement from those where an action was taken."""
        index = torch.multinomial(self.mask.float(), size, replacement=True, generator=generator)
        return torch.take_along_dim(self.observations, index[:, :, None], dim=1)


def collect(
    env: VecEnv,
    policies: Policies,
    parameters: Tensor,
    horizon: int,
    generator: np.random.Generator,
    reward_scale: float = 1.0,
    gamma: float = 0.99,
    gae_lambda: float = 0.97,
) -> Rollouts:
    """An episode of each environment, of ``horizon`` steps at most, which end it.

    Args:
        env: Environments task by task, a multiple of the number of tasks.
        policies: The networks.
        parameters: ``(k, n)``.
        horizon: Largest number of steps.
        generator: Of the actions.
        reward_scale: What the advantages are divided by.
        gamma: Discount of the advantages.
        gae_lambda: Of generalised advantage estimation (Schulman et al., ICLR 2016), around the linear baseline of Duan
            et al. (ICML 2016), which is fitted to each task's episodes alone.

    Raises:
        ValueError: A number of environments that the tasks cannot share evenly.
    """
    n_tasks = len(parameters)
    if env.num_envs % n_tasks:
        raise ValueError(f"{env.num_envs} environments cannot be shared evenly by {n_tasks} tasks")
    shape = (n_tasks, env.num_envs // n_tasks)
    weights = parameters.detach().numpy()
    seen, actions, rewards, alive = [], [], [], [np.ones(env.num_envs, dtype=np.bool_)]
    observations = np.asarray(env.reset())
    for _ in range(horizon):
        scaled = observations / policies.observation_scale
        action = policies.act(weights, scaled.reshape(*shape, -1), generator)
        seen.append(scaled)
        actions.append(action)
        flat = action.reshape(env.num_envs, *action.shape[2:])
        after, reward, done, _ = env.step(flat if policies.discrete else flat * policies.action_scale)
        observations = np.asarray(after)
        rewards.append(reward)
        alive.append(alive[-1] & ~done)
        if not alive[-1].any():
            break
    mask = np.stack(alive[:-1], axis=-1).reshape(*shape, -1)
    reward = np.where(mask, np.stack(rewards, axis=-1).reshape(mask.shape), 0.0)
    states = np.stack(seen, axis=1).reshape(*mask.shape, -1)
    taken = np.stack(actions, axis=2)
    advantages = _advantages(states, reward / reward_scale, mask, gamma, gae_lambda)
    tensors = [torch.as_tensor(array.reshape(n_tasks, -1, *array.shape[3:])) for array in (states, taken, mask)]
    with torch.no_grad():
        log_prob = policies.distribution(parameters, tensors[0]).log_prob(tensors[1])
    flat_advantages = torch.as_tensor(advantages.reshape(n_tasks, -1)).to(log_prob.dtype)
    return Rollouts(tensors[0], tensors[1], log_prob, flat_advantages, tensors[2], reward.sum(axis=2))


def _advantages(states: Floats, rewards: Floats, mask: NDArray[np.bool_], gamma: float, gae_lambda: float) -> Floats:
    """Of mean 0 in each task, ``(k, m, t)``; the arguments likewise, states with a last axis."""
    returns = np.zeros(rewards.shape)
    following = np.zeros(rewards.shape[:2])
    for step in reversed(range(rewards.shape[2])):
        following = returns[:, :, step] = rewards[:, :, step] + gamma * following
    time = np.broadcast_to((np.arange(rewards.shape[2]) / 100.0)[:, None], (*rewards.shape, 1))
    features = np.concatenate([states, states**2, time, time**2, time**3, np.ones_like(time)], axis=-1)
    features = np.where(mask[..., None], features, 0.0).reshape(len(states), -1, features.shape[-1])
    transposed = features.swapaxes(1, 2)
    ridge = 1e-5 * features.shape[1] * np.eye(features.shape[-1])
    fitted = np.linalg.solve(transposed @ features + ridge, transposed @ returns.reshape(len(states), -1, 1))
    values = (features @ fitted).reshape(rewards.shape)  # 0 behind the end, as the return is.
    after = np.concatenate([values[:, :, 1:], np.zeros((*rewards.shape[:2], 1))], axis=2)
    errors = rewards + gamma * after - values
    advantages = np.zeros(rewards.shape)
    following = np.zeros(rewards.shape[:2])
    for step in reversed(range(rewards.shape[2])):
        following = advantages[:, :, step] = errors[:, :, step] + gamma * gae_lambda * following
    count = mask.sum(axis=(1, 2), keepdims=True)
    advantages = np.where(mask, advantages, 0.0)
    return np.asarray(np.where(mask, advantages - advantages.sum(axis=(1, 2), keepdims=True) / count, 0.0))
