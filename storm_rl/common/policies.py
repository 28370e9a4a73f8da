"""Actor-critic policies that carry their observation statistics and the scale of their values."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn
from torch.nn import functional

from storm_rl.common.action_units import action_units
from storm_rl.common.parameters import parameters_behind

ObservationBatch = Tensor | dict[str, Tensor]


def batch_size(observations: ObservationBatch) -> int:
    """Number of observations."""
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)


def map_observations(function: Callable[..., Any], *batches: Any) -> Any:
    """``function`` of batches of observations, or entry by entry for Dict observations."""
    if isinstance(batches[0], dict):
        return {key: function(*(batch[key] for batch in batches)) for key in batches[0]}
    return function(*batches)


def select(observations: ObservationBatch, index: Tensor | slice) -> ObservationBatch:
    """The rows ``index``."""
    return map_observations(lambda part: part[index], observations)  # type: ignore[no-any-return]


def concatenate(batches: list[ObservationBatch]) -> ObservationBatch:
    """One batch after the other."""
    return map_observations(lambda *parts: torch.cat(parts), *batches)  # type: ignore[no-any-return]


class RunningMeanStd(nn.Module):
    """Mean and variance of all samples of one shape seen so far, merged batch by batch; 0 and 1 before the first.

    Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983. The statistics are buffers in float64:
    they are saved, loaded and moved with the module, and no optimizer touches them.
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
        samples, count = samples.to(self.mean), samples.shape[0]
        if count == 0:
            return
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
        for key, batch in (observations if isinstance(observations, dict) else {"": observations}).items():
            if (statistics := self._of(key)) is not None:
                statistics.update(batch)

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """The observations with every real-valued vector standardised; shapes and dtypes stay."""
        if isinstance(observations, dict):
            return {key: self._standardise(key, batch) for key, batch in observations.items()}
        return self._standardise("", observations)

    def per_input(self, key: str, width: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each of the ``width`` numbers of an entry; 0 and 1 where it is not standardised."""
        statistics = self._of(key) or RunningMeanStd((width,))
        return statistics.mean.flatten().clone(), statistics.std.flatten()

    def _standardise(self, key: str, batch: Tensor) -> Tensor:
        if (statistics := self._of(key)) is None:
            # Behind it a convolution's backward pass takes a fifth less time on the CPU; the numbers are the same.
            image_on_cpu = batch.dim() == 4 and batch.device.type == "cpu"
            return batch.contiguous(memory_format=torch.channels_last) if image_on_cpu else batch
        # In the batch's own precision: float64 arithmetic on every acting step would cost more than the network.
        mean, std = statistics.mean.to(batch.dtype), statistics.std.to(batch.dtype)
        return ((batch - mean) / std).clamp(-self.clip, self.clip)

    def _of(self, key: str) -> RunningMeanStd | None:
        name = _module_key(key)
        return self.running[name] if name in self.running else None  # type: ignore[return-value]  # noqa: SIM401


def _module_key(key: str) -> str:
    # ModuleDict keys may be neither empty nor hold dots; observation keys may do both.
    return "obs_" + key.replace(".", "__")


class StandardisedFeatures(BaseFeaturesExtractor):
    """A features extractor that sees standardised observations, on every path: all go through SB3's extractor."""

    def __init__(self, statistics: ObservationStatistics, extractor: BaseFeaturesExtractor) -> None:
        super().__init__(extractor._observation_space, extractor.features_dim)
        self.statistics = statistics
        self.extractor = extractor

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """Features of shape ``(n, features_dim)``."""
        features: Tensor = self.extractor(self.statistics(observations))
        return features

    def __getattr__(self, name: str) -> Any:
        """Layers of the user's extractor by their own names."""
        own = {"extractor": None, **vars(self).get("_modules", {})}
        return super().__getattr__(name) if name in own else getattr(self.extractor, name)


class ValueHead(nn.Module):
    """The critic's last layer: linear, in units of ``scale`` around ``offset``, to values in units of return."""

    scale: Tensor
    offset: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.setdefault(f"{prefix}offset", torch.zeros(()))  # Older versions have none.
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, latent: Tensor) -> Tensor:
        """Values of shape ``(n, 1)``, in units of return."""
        values: Tensor = self.linear(latent) * self.scale + self.offset
        return values


class StandardisedActorCriticPolicy(ActorCriticPolicy):
    """SB3's actor-critic policy with observation standardisation inside and separate actor and critic.

    Five things differ from :class:`stable_baselines3.common.policies.ActorCriticPolicy`, whose arguments it takes:

    - ``normalize_observations``: observations are standardised by running statistics that are saved and loaded
      with the policy, so that no ``VecNormalize`` is needed. The statistics move only when the algorithm calls
      :meth:`update_observation_statistics`, never by acting.
    - actor and critic share no parameters: the recursion remembers the actor's previous parameters, and the
      critic's steps would move them behind its back. A features extractor is shared only if it has none.
    - ``optimizer`` holds the critic's parameters only; the actor's step belongs to the algorithm.
    - Box actions with finite bounds: the network's means and noise are in units of half the range, around its middle,
      and the noise starts as a vector of the same length, however many actions there are.
    - gSDE's features, with one more that is always 1, are scaled to length 1: the noise is as large everywhere.

    Args:
        observation_space: As in SB3, and so are the next and ``**kwargs``.
        action_space: See above.
        lr_schedule: Learning-rate schedule of the critic's optimizer.
        normalize_observations: Whether real-valued observations are standardised.
        share_features_extractor: True only for extractors without parameters. None: for SB3's that only flattens.
        log_std_init: Logarithm of the noise's standard deviation at the start, in units of half the actions' range.
            None: that of 1 over the root of the number of actions, so that the whole vector has a length of about 1.
        features_extractor_class: Features extractor; None: SB3's for the kind of observations.
        optimizer_class: The critic's optimizer.
        optimizer_kwargs: Its arguments; None: SB3's for Adam, in the fused form.

    Raises:
        ValueError: ``share_features_extractor=True`` with an extractor that has parameters.
    """

    default_features_extractor: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor
    action_middle: Tensor
    action_unit: Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        normalize_observations: bool = True,
        share_features_extractor: bool | None = None,
        log_std_init: float | None = None,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.normalize_observations = normalize_observations
        features_extractor_class = features_extractor_class or self.default_features_extractor
        if share_features_extractor is None:
            share_features_extractor = features_extractor_class is FlattenExtractor
        if log_std_init is None:
            log_std_init = -0.5 * math.log(get_action_dim(action_space))
        if optimizer_kwargs is None and optimizer_class is torch.optim.Adam:
            optimizer_kwargs = {"eps": 1e-5, "fused": True}
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            share_features_extractor=share_features_extractor,
            log_std_init=log_std_init,
            features_extractor_class=features_extractor_class,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            **kwargs,
        )

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """The user's features extractor, behind the observation statistics that all extractors share."""
        extractor = super().make_features_extractor()
        if self.share_features_extractor and any(True for _ in extractor.parameters()):
            raise ValueError(
                f"share_features_extractor=True with {type(extractor).__name__}, which has parameters: "
                "actor and critic must not share parameters here; leave share_features_extractor=False."
            )
        if not self.normalize_observations:
            return extractor
        if not hasattr(self, "observation_statistics"):
            self.observation_statistics = ObservationStatistics(self.observation_space)
        return StandardisedFeatures(self.observation_statistics, extractor)

    def _build(self, lr_schedule: Schedule) -> None:
        middle, unit = action_units(self.action_space, self.squash_output)
        self.register_buffer("action_middle", middle, persistent=False)
        self.register_buffer("action_unit", unit, persistent=False)
        self._parts: dict[str, tuple[list[nn.Parameter], list[nn.Parameter]]] = {}
        super()._build(lr_schedule)
        if isinstance(self.action_dist, StateDependentNoiseDistribution):
            self.log_std = nn.Parameter(torch.cat([self.log_std, self.log_std[:1]]).detach())
            assert self.action_dist.latent_sde_dim is not None
            self.action_dist.latent_sde_dim += 1
            self.reset_noise()
        self.value_head = ValueHead(self.value_net)
        self.value_net = self.value_head  # type: ignore[assignment]
        critic, rate = self._part("critic"), lr_schedule(1)
        self.optimizer = self.optimizer_class(critic, lr=rate, **self.optimizer_kwargs)  # type: ignore[call-arg]

    def actor_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters of the action distribution, in a fixed order."""
        return [parameter for parameter in self._part("actor") if parameter.requires_grad]

    def critic_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters of the value function, in a fixed order."""
        return [parameter for parameter in self._part("critic") if parameter.requires_grad]

    def _part(self, part: Literal["actor", "critic"]) -> list[nn.Parameter]:
        """All parameters of a part, ``log_std`` last."""
        present = list(self.parameters())
        former, found = self._parts.get(part, ([], []))
        # The graph is asked anew only where parameters were added or exchanged.
        if [*map(id, former)] != [*map(id, present)]:
            found = parameters_behind(self, part)
            found.sort(key=lambda parameter: parameter is getattr(self, "log_std", None))
            self._parts[part] = present, found
        return found

    @property
    def critic_learns_features(self) -> bool:
        """Whether the critic's features extractor has trainable parameters: it changes while the critic is fitted."""
        return any(parameter.requires_grad for parameter in self.vf_features_extractor.parameters())

    def critic_features(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """What the critic's own network sees of ``observations``: ``(n, features_dim)``."""
        return BaseModel.extract_features(self, observations, self.vf_features_extractor)

    def scaled_values(self, features: Tensor) -> Tensor:
        """Values around :attr:`value_offset` in units of :attr:`value_scale`, ``(n,)``, from the critic's features."""
        values: Tensor = self.value_head.linear(self.mlp_extractor.forward_critic(features))
        return values.flatten()

    def distribution_of(self, outputs: Tensor, latent: Tensor, log_std: Tensor | None) -> Distribution:
        """The action distribution from the actor's outputs on: the policy's own object, as of ``get_distribution``.

        ``outputs`` are logits or means, ``(n, n_outputs)``; ``latent`` is the last hidden layer, of which gSDE's noise
        is a function; ``log_std`` stands in for the policy's own, and is None where the distribution has none.
        """
        distribution = self.action_dist
        if log_std is None:
            return distribution.proba_distribution(outputs)
        outputs, log_std = self.action_middle + self.action_unit * outputs, self.log_std_of_actions(log_std)
        if isinstance(distribution, StateDependentNoiseDistribution):
            return distribution.proba_distribution(outputs, log_std, noise_features(latent))
        return distribution.proba_distribution(outputs, log_std)

    def log_std_of_actions(self, log_std: Tensor) -> Tensor:
        """The noise's ``log_std`` in units of the actions, with a column for each."""
        return log_std + self.action_unit.log()

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        return self.distribution_of(self.action_net(latent_pi), latent_pi, getattr(self, "log_std", None))

    def reset_noise(self, n_envs: int = 1) -> None:
        """Draw gSDE's noise anew, for each of ``n_envs`` environments; as SB3's."""
        assert isinstance(self.action_dist, StateDependentNoiseDistribution)
        self.action_dist.sample_weights(self.log_std_of_actions(self.log_std), batch_size=n_envs)

    def update_observation_statistics(self, observations: Tensor | dict[str, Tensor]) -> None:
        """Add a batch of raw observations, ``(n, *shape)`` or a dict of such, to all running statistics."""
        if self.normalize_observations:
            self.observation_statistics.update(observations)
        if any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) for module in self.modules()):
            training = self.training  # Acting and differentiating leave these alone.
            self.set_training_mode(True)
            with torch.no_grad():
                _ = self.get_distribution(observations), self.predict_values(observations)
            self.set_training_mode(training)

    @property
    def has_statistics(self) -> bool:
        """Whether there are any that :meth:`update_observation_statistics` moves; images alone have none."""
        return any(name.endswith(("count", "num_batches_tracked")) for name, _ in self.named_buffers())

    @property
    def value_scale(self) -> float:
        """Returns are divided by this before the critic is fitted to them; in units of return."""
        return float(self.value_head.scale)

    @property
    def value_offset(self) -> float:
        """What the critic's values are fitted around; in units of return."""
        return float(self.value_head.offset)

    def set_value_offset(self, offset: float) -> None:
        """Move all values to be around ``offset``. Those of a frozen layer stay."""
        if all(parameter.requires_grad for parameter in self.value_head.linear.parameters()):
            self.value_head.offset.fill_(offset)

    @torch.no_grad()
    def set_value_scale(self, scale: float, preserve: bool = False) -> None:
        """Set the unit of the critic's last layer; its outputs, around the offset, scale along.

        With ``preserve`` they stay, as in PopArt (van Hasselt et al. 2016, arXiv 1602.07714). A frozen layer's stays.
        """
        if not all(parameter.requires_grad for parameter in self.value_head.linear.parameters()):
            return
        if preserve:
            for parameter in self.value_head.linear.parameters():
                parameter.mul_(self.value_head.scale / scale)
        self.value_head.scale.fill_(scale)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "normalize_observations": self.normalize_observations,
            "share_features_extractor": self.share_features_extractor,
        }


class StandardisedActorCriticCnnPolicy(StandardisedActorCriticPolicy):
    """:class:`StandardisedActorCriticPolicy` for images: ``NatureCNN`` features."""

    default_features_extractor = NatureCNN


class StandardisedMultiInputActorCriticPolicy(StandardisedActorCriticPolicy):
    """:class:`StandardisedActorCriticPolicy` for Dict observations: SB3's ``CombinedExtractor``."""

    default_features_extractor = CombinedExtractor


def noise_features(latent: Tensor) -> Tensor:
    """Features of gSDE, ``(n, k + 1)``, scaled to length 1: the last hidden layer ``(n, k)`` and a constant 1."""
    return functional.normalize(functional.pad(latent, (0, 1), value=1.0))


def environment_actions(policy: BasePolicy, actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Samples, which are what is stored, as the environment takes them: Box actions unsquashed or clipped to bounds."""
    space = policy.action_space
    if not isinstance(space, spaces.Box):
        return actions
    actions = actions.reshape(-1, *space.shape)  # Distributions are over vectors.
    if policy.squash_output:
        return np.asarray(policy.unscale_action(actions))
    return np.asarray(np.clip(actions, space.low, space.high))
