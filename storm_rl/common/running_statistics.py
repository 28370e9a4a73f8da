"""Running means and variances: of observations inside the policy, of returns inside the algorithm."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn


class RunningMeanStd(nn.Module):
    """Mean and variance of all samples seen so far, merged batch by batch.

    Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983. The statistics are buffers in
    float64: they are saved, loaded and moved with the module, and no optimiser touches them. Before the first
    sample they are mean 0 and variance 1.

    Args:
        shape: Shape of one sample; ``()`` for scalars.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: Sequence[int] = ()) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(tuple(shape), dtype=torch.float64))
        self.register_buffer("var", torch.ones(tuple(shape), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, samples: Tensor) -> None:
        """Add ``samples`` of shape ``(n, *shape)``."""
        if samples.shape[0] == 0:
            return
        samples = samples.to(self.mean)
        count = samples.shape[0]
        mean = samples.mean(dim=0)
        var = samples.var(dim=0, unbiased=False)
        total = self.count + count
        delta = mean - self.mean
        # Before the first sample `count` is 0, and the initial mean and variance drop out of both lines.
        merged = (self.var * self.count + var * count) / total + delta.square() * self.count * count / total**2
        self.mean.add_(delta * count / total)
        self.var.copy_(merged)
        self.count.copy_(total)

    @property
    def std(self) -> Tensor:
        """Standard deviation, shape of one sample; never 0, so that it can divide."""
        return (self.var + 1e-8).sqrt()


class ObservationStatistics(nn.Module):
    """Standardises observations by their running mean and standard deviation.

    Only real-valued vectors are standardised: images are scaled by SB3 already, and Discrete, MultiDiscrete and
    MultiBinary observations are one-hot or binary. In a Dict each entry is treated by its own kind.

    Standardised values are clipped to ``[-clip, clip]``, as in SB3's ``VecNormalize`` (same default, 10).
    """

    def __init__(self, observation_space: spaces.Space[Any], clip: float = 10.0) -> None:
        super().__init__()
        self.clip = clip
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
        self.running = nn.ModuleDict(
            {
                _module_key(key): RunningMeanStd(space.shape)
                for key, space in parts.items()
                if isinstance(space, spaces.Box) and not is_image_space(space)
            }
        )

    def update(self, observations: Tensor | dict[str, Tensor]) -> None:
        """Add a batch of raw observations, ``(n, *shape)``, or a dict of such batches."""
        parts = observations if isinstance(observations, dict) else {"": observations}
        for key, batch in parts.items():
            if _module_key(key) in self.running:
                statistics = self.running[_module_key(key)]
                assert isinstance(statistics, RunningMeanStd)
                statistics.update(batch)

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """The observations with every real-valued vector standardised; shapes and dtypes stay."""
        if isinstance(observations, dict):
            return {key: self._standardise(key, batch) for key, batch in observations.items()}
        return self._standardise("", observations)

    def _standardise(self, key: str, batch: Tensor) -> Tensor:
        if _module_key(key) not in self.running:
            return batch
        statistics = self.running[_module_key(key)]
        assert isinstance(statistics, RunningMeanStd)
        # In the batch's own precision: float64 arithmetic on every acting step would cost more than the network.
        mean, std = statistics.mean.to(batch.dtype), statistics.std.to(batch.dtype)
        return ((batch - mean) / std).clamp(-self.clip, self.clip)


def _module_key(key: str) -> str:
    # ModuleDict keys may be neither empty nor hold dots; observation keys may do both.
    return "obs_" + key.replace(".", "__")


class StandardisedFeatures(BaseFeaturesExtractor):
    """A features extractor that sees standardised observations.

    SB3's policies preprocess an observation and hand it to their features extractor, on every path (acting,
    values, evaluation, prediction); standardising here covers them all.
    """

    def __init__(self, statistics: ObservationStatistics, extractor: BaseFeaturesExtractor) -> None:
        super().__init__(extractor._observation_space, extractor.features_dim)
        self.statistics = statistics
        self.extractor = extractor

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """Features of shape ``(n, features_dim)``."""
        features: Tensor = self.extractor(self.statistics(observations))
        return features


class DiscountedReturnStatistics:
    r"""The scale of the rewards: standard deviation of the running discounted return of each environment.

    :math:`R_h = \gamma R_{h-1} + r_h`, restarted at 0 with each episode; the scale is the standard deviation of
    all :math:`R_h` seen so far. Dividing rewards by it is what SB3's ``VecNormalize`` and OpenAI baselines do.

    Args:
        gamma: Discount factor.
        n_envs: Number of environments that are stepped together.
    """

    def __init__(self, gamma: float, n_envs: int) -> None:
        self.gamma = gamma
        self.running = RunningMeanStd()
        self.returns = np.zeros(n_envs, dtype=np.float64)

    def update(self, rewards: np.ndarray, dones: np.ndarray) -> None:
        """Add one rollout: ``rewards`` and ``dones`` of shape ``(n_steps, n_envs)``, in order of time."""
        history = np.empty(rewards.shape, dtype=np.float64)
        for step, (reward, done) in enumerate(zip(rewards, dones, strict=True)):
            self.returns = self.returns * self.gamma + reward
            history[step] = self.returns
            self.returns = np.where(done, 0.0, self.returns)
        self.running.update(torch.as_tensor(history.reshape(-1)))

    @property
    def scale(self) -> float:
        """The standard deviation, in units of return; 1 before the first reward and where all are equal."""
        std = float(self.running.var.sqrt())
        return std if std > 1e-8 else 1.0

    def state_dict(self) -> dict[str, Any]:
        """Tensors only: the running statistics and each environment's return so far."""
        return {**self.running.state_dict(), "returns": torch.as_tensor(self.returns)}

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Restore what :meth:`state_dict` gave."""
        state = dict(state)
        returns = state.pop("returns").cpu().numpy()
        self.running.load_state_dict(state, strict=strict)
        # Another number of environments starts its episodes afresh.
        self.returns = returns.copy() if returns.shape == self.returns.shape else np.zeros_like(self.returns)
