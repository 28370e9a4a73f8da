"""Deep networks as a features extractor, on vectors and on images."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Self

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from storm_rl.common.checks import check_integer
from storm_rl.deep.criticality import critical_
from storm_rl.deep.momentum import momentum_residual, momentum_states

WIRINGS, STARTS = ("plain", "residual", "momentum"), ("critical", "orthogonal")


class DeepFeatures(BaseFeaturesExtractor):
    r"""A first layer and ``depth`` blocks :math:`f(z) = b + W \sigma(z)` of one width; features are :math:`\sigma(z)`.

    On images the layers are convolutions: the first one of patches of 8 x 8, the others of 3 x 3, which go on at the
    opposite edge (with zeros there variances would fall at edges: Xiao et al., ICML 2018). Features are flattened.

    Args:
        observation_space: A Box.
        depth: Number of blocks.
        width: Units of a block, or channels.
        activation_fn: ``nn.Tanh``, ``nn.ReLU`` or ``nn.GELU``; with ``start="orthogonal"`` any.
        wiring: "plain", ``z = f(z)``; "residual", ``z = z + f(z)``; or "momentum", :func:`momentum_residual`.
        start: "critical" (:func:`critical_`, with 1 / depth of the variances in residual blocks), which SB3's
            ``ortho_init`` then leaves alone; or "orthogonal", SB3's own.
        gamma: Momentum of "momentum".

    Raises ``TypeError`` for observations that are no Box, ``ValueError`` for an argument outside its range.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        depth: int = 8,
        width: int = 64,
        activation_fn: type[nn.Module] = nn.Tanh,
        wiring: Literal["plain", "residual", "momentum"] = "plain",
        start: Literal["critical", "orthogonal"] = "critical",
        gamma: float = 0.9,
    ) -> None:
        if not isinstance(observation_space, spaces.Box):
            raise TypeError(f"observations must be a Box, got {observation_space}.")
        for name, value, known in (("wiring", wiring, WIRINGS), ("start", start, STARTS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
        depth, width = check_integer("depth", depth, 1), check_integer("width", width, 1)
        super().__init__(observation_space, features_dim=1)
        layer: Callable[[], nn.Module]
        if is_image_space(observation_space):
            self.first: nn.Module = nn.Conv2d(observation_space.shape[0], width, 8, stride=8)
            layer = partial(nn.Conv2d, width, width, 3, padding=1, padding_mode="circular")
        else:
            self.first = nn.Sequential(nn.Flatten(), nn.Linear(spaces.flatdim(observation_space), width))
            layer = partial(nn.Linear, width, width)
        self.blocks = nn.ModuleList(nn.Sequential(activation_fn(), layer()) for _ in range(depth))
        self.last = nn.Sequential(activation_fn(), nn.Flatten())
        self.wiring, self.start, self.gamma = wiring, start, gamma
        self._features_dim = self.last(self.first(torch.zeros(1, *observation_space.shape))).shape[1]
        if start == "critical":
            critical_(self.first, activation_fn)
            critical_(self.blocks, activation_fn, 1.0 if wiring == "plain" else 1.0 / depth)

    def forward(self, observations: Tensor) -> Tensor:
        """Features of shape ``(n, features_dim)``."""
        if self.wiring == "momentum":
            last = momentum_residual(self.first(observations), list(self.blocks), self.gamma)
        else:
            last = self.layers(observations)[-1]
        features: Tensor = self.last(last)
        return features

    def layers(self, observations: Tensor) -> list[Tensor]:
        """What the first layer gives, and what there is after each block; keeps all activations."""
        values: list[Tensor] = [self.first(observations)]
        if self.wiring == "momentum":
            return momentum_states(values[0], list(self.blocks), self.gamma)
        for block in self.blocks:
            values.append(values[-1] + block(values[-1]) if self.wiring == "residual" else block(values[-1]))
        return values

    def apply(self, fn: Callable[[nn.Module], Any]) -> Self:
        """As torch's; but SB3's orthogonal start of all layers leaves critical ones as they are."""
        if self.start == "critical" and isinstance(fn, partial) and fn.func is BasePolicy.init_weights:
            return self
        return super().apply(fn)
