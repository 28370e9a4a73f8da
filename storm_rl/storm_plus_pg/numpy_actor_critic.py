"""The actor and the critic of a fully connected policy on the CPU, in closed form: the door to the numpy fast path.

:class:`NumpyActorCritic` answers to the methods of :class:`~storm_rl.storm_plus_pg.actor_critic.ActorCritic`, with the
same results up to rounding, and the same random numbers.
"""

import copy
import functools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, MlpExtractor
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor, nn

from storm_rl.common.policies import (
    ObservationBatch,
    RunningMeanStd,
    StandardisedActorCriticPolicy,
    StandardisedFeatures,
    noise_features,
)
from storm_rl.storm_plus_pg.actor_critic import ActorCritic, Objective
from storm_rl.storm_plus_pg.metric import fisher_vector_product, mean_kl
from storm_rl.storm_plus_pg.numpy_mlp import Array, Jacobian, NumpyMLP

# Where a subclass has its own, the networks are not all there is to the policy.
_OWN_METHODS = (
    *("forward", "extract_features", "critic_features", "distribution_of", "get_distribution"),
    *("_get_action_dist_from_latent", "predict_values", "scaled_values"),
)

# Units of a layer from which two BLAS threads were measured to be faster than one (1.2 times, and 0.8 times at 64).
WIDE_LAYER = 128
# BLAS has one number of threads for the whole process. Held by the block that has lowered it.
_blas_limit = threading.Lock()

Features = Callable[[ObservationBatch], Array]


class NumpyActorCritic:
    """The policy as it is: its parameters while they stay in their place in memory, its statistics but for ``act``.

    ``actor`` is its network from features to logits or means, ``critic`` from features to scaled values.
    """

    def __init__(self, policy: StandardisedActorCriticPolicy, actor: NumpyMLP, critic: NumpyMLP) -> None:
        self.policy = policy
        self.actor_network = actor
        self.critic_network = critic
        log_std = getattr(policy, "log_std", None)
        self.log_std: Tensor | None = None if log_std is None else log_std.detach()
        self._acting_features = _features_of(policy, policy.pi_features_extractor)

    @classmethod
    def from_policy(cls, policy: StandardisedActorCriticPolicy) -> Self | None:
        """The closed form of ``policy``; None if it is on another device, or more than this package's own class."""
        own, base = type(policy), StandardisedActorCriticPolicy
        if any(getattr(own, name) is not getattr(base, name) for name in _OWN_METHODS):
            return None
        noise, log_std = policy.action_dist, getattr(policy, "log_std", None)
        # Options of gSDE's distribution that `Noise` does not have.
        other = any(getattr(noise, name, False) for name in ("learn_features", "use_expln"))
        if other or type(policy.mlp_extractor) is not MlpExtractor:
            return None
        if log_std is not None and not isinstance(noise, (DiagGaussianDistribution, StateDependentNoiseDistribution)):
            return None
        hooked = any(part._backward_hooks or part._post_accumulate_grad_hooks for part in policy.parameters())
        if hooked or any(map(_is_changed, (*policy.modules(), policy.action_dist))):
            return None
        actor = mlp_from_modules(policy.mlp_extractor.policy_net, policy.action_net)
        critic = mlp_from_modules(policy.mlp_extractor.value_net, policy.value_head.linear)
        if actor is None or critic is None:
            return None
        n_noise = log_std.numel() if isinstance(log_std, nn.Parameter) else 0
        # More parameters than these are a features extractor's, and fewer are trained where some are frozen.
        parts = (policy.actor_parameters(), policy.critic_parameters())
        sizes = [sum(parameter.numel() for parameter in part) for part in parts]
        return cls(policy, actor, critic) if sizes == [actor.n_parameters + n_noise, critic.n_parameters] else None

    def threads(self) -> AbstractContextManager[None]:
        """Limits the threads while these networks are trained; BLAS's only where layers are too small to gain."""
        networks = (self.actor_network, self.critic_network)
        return one_thread(blas=all(len(array) < WIDE_LAYER for network in networks for array in network.arrays))

    @torch.no_grad()
    def act(self, observations: ObservationBatch) -> tuple[Tensor, Tensor]:
        """Sampled actions ``(n, ...)`` and their log-probabilities ``(n,)``."""
        layers = self.actor_network.forward(self._acting_features(observations))
        outputs = torch.from_numpy(layers[-1])
        if type(self.policy.action_dist) is CategoricalDistribution:
            # The same samples from the same stream as by torch's Categorical, which takes several times as long.
            actions = torch.multinomial(torch.softmax(outputs, dim=1), 1)
            return actions.flatten(), torch.log_softmax(outputs, dim=1).gather(1, actions).flatten()
        distribution = self.policy.distribution_of(outputs, torch.from_numpy(layers[-2]), self.log_std)
        actions = distribution.get_actions()
        log_prob = distribution.log_prob(actions)
        return actions.reshape(-1, *(self.policy.action_space.shape or ())), log_prob

    def values(self, observations: ObservationBatch) -> Tensor:
        """Values in units of return, ``(n,)``."""
        values = self.critic_network.forward(self._critic_features(observations))[-1]
        values *= self.policy.value_scale
        values += self.policy.value_offset
        return torch.from_numpy(values).flatten()

    def actor(self, observations: ObservationBatch) -> "NumpyActor":
        """The action distribution on these raw states, to be evaluated and differentiated."""
        return NumpyActor(self, observations)

    def fit_critic(self, observations: ObservationBatch, targets: Tensor, minibatches: Iterable[Tensor]) -> float:
        """As ``ActorCritic.fit_critic``."""
        policy = self.policy
        if not has_plain_adam(policy.optimizer, policy.critic_parameters()):
            return ActorCritic(policy).fit_critic(observations, targets, minibatches)
        network = nn.Sequential(policy.mlp_extractor.value_net, policy.value_head.linear)
        features = torch.from_numpy(self._critic_features(observations))
        return self.regress(network, policy.optimizer, features, targets, minibatches)

    def regress(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        inputs: Tensor,
        targets: Tensor,
        minibatches: Iterable[Tensor],
    ) -> float:
        """As ``ActorCritic.regress``, for a plain Adam. All parameters are one vector: six would take far longer."""
        mlp, parameters = mlp_from_modules(network), list(network.parameters())
        assert mlp is not None
        rows, columns = inputs.numpy(), targets.numpy().reshape(-1, 1)
        states = [optimizer.state[parameter] for parameter in parameters]
        theta = mlp.flat()
        mlp, gradient = mlp.with_parameters(theta), np.empty_like(theta)
        gradients = mlp.split(gradient)
        adam = NumpyAdam(optimizer.param_groups[0], states, theta)
        workspaces: dict[int, list[list[Array]]] = {}
        losses = []
        for indices in minibatches:
            index, size = indices.numpy(), indices.numel()
            if size not in workspaces:
                workspaces[size] = [mlp.empty_layers(size) for _ in range(3)]
            layers, derivatives, deltas = workspaces[size]
            values = mlp.forward(rows.take(index, axis=0), layers)
            errors = np.subtract(values[-1], columns.take(index, axis=0), out=deltas[-1])
            losses.append(float(np.vdot(errors, errors)) / size)
            errors *= 2.0 / size
            arrived = mlp.backward(mlp.activation_derivatives(values, derivatives), errors, deltas)
            mlp.gradient(values, arrived, gradients)
            adam.step(theta, gradient)
        parts = zip(parameters, *map(mlp.split, (theta, adam.mean, adam.square)), strict=True)
        for parameter, value, mean, square in parts:
            parameter.data.copy_(torch.from_numpy(value))
            moments = {"exp_avg": torch.tensor(mean), "exp_avg_sq": torch.tensor(square)}
            optimizer.state[parameter] = {"step": torch.tensor(float(adam.n_steps)), **moments}
        return float(np.mean(losses))

    def _critic_features(self, observations: ObservationBatch) -> Array:
        return _features_of(self.policy, self.policy.vf_features_extractor)(observations)


Networks = ActorCritic | NumpyActorCritic
"""Either form of a policy's networks."""


class NumpyAdam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) on one vector, from torch's settings and states on."""

    def __init__(self, group: dict[str, Any], states: list[dict[str, Tensor]], like: Array) -> None:
        self.lr, self.betas, self.eps = float(group["lr"]), group["betas"], group["eps"]
        kept = [[state[name].numpy().reshape(-1) for state in states if state] for name in ("exp_avg", "exp_avg_sq")]
        self.mean, self.square = (np.concatenate(parts) if parts else np.zeros_like(like) for parts in kept)
        self.n_steps = int(states[0]["step"]) if states[0] else 0
        self._work = np.empty_like(like)

    def step(self, parameters: Array, gradient: Array) -> None:
        """Move ``parameters`` in place; ``gradient`` stays."""
        self.n_steps += 1
        (first, second), work = self.betas, self._work
        self.mean += np.multiply(np.subtract(gradient, self.mean, out=work), 1.0 - first, out=work)
        self.square *= second
        self.square += np.multiply(np.square(gradient, out=work), 1.0 - second, out=work)
        np.sqrt(self.square, out=work)
        work /= math.sqrt(1.0 - second**self.n_steps)
        work += self.eps
        np.divide(self.mean, work, out=work)
        work *= self.lr / (1.0 - first**self.n_steps)
        parameters -= work


class NumpyActor:
    """The action distribution on a batch: autograd for the distribution only, closed form for the network behind it.

    The Jacobian ``J`` of the outputs (logits or means) in the network's parameters is used row by row, so that
    gradients of all parts share one pass, and ``F v = J^T H J v / n`` with the Hessian ``H`` of the divergence in the
    outputs: one forward and one backward pass instead of a differentiated backward pass (Schraudolph 2002, "Fast
    curvature matrix-vector products for second-order gradient descent"). "The present" parameters are those at the time
    of construction.
    """

    def __init__(self, networks: NumpyActorCritic, observations: ObservationBatch) -> None:
        self.policy = networks.policy
        self.network = networks.actor_network
        self.log_std = None if networks.log_std is None else networks.log_std.clone()
        self.observations = observations
        self.features = _features_of(self.policy, self.policy.pi_features_extractor)(observations)
        self.layers = self.network.forward(self.features)

    def distribution(self, parameters: Tensor | None = None) -> Distribution:
        """The distribution on all states, without graph, at a flat parameter vector; None: the present one."""
        _, layers, log_std = self._at(parameters)
        with torch.no_grad():
            outputs, latent = torch.from_numpy(layers[-1]), torch.from_numpy(layers[-2])
            return copy.copy(self.policy.distribution_of(outputs, latent, log_std))

    def part_gradients(self, objective: Objective, parts: Sequence[slice], parameters: Tensor | None = None) -> Tensor:
        """Gradients of the sum of ``objective`` over the states of each part, ``(k, n_parameters)``."""
        network, layers, log_std = self._at(parameters)
        outputs, latent = torch.from_numpy(layers[-1]).requires_grad_(), torch.from_numpy(layers[-2])
        gradients = outputs.new_zeros(len(parts), network.n_parameters + (0 if log_std is None else log_std.numel()))
        distribution = self.policy.distribution_of(outputs, latent, log_std)
        normal: Any = distribution.distribution
        leaves = [outputs] if log_std is None else [outputs, normal.scale.requires_grad_()]
        total = objective(distribution, slice(0, len(outputs))).sum()
        cotangent, *by_std = torch.autograd.grad(total, leaves, materialize_grads=True)
        if log_std is not None:
            noise = Noise(self.policy, normal.scale, latent, log_std)
            for part, gradient in zip(parts, gradients, strict=True):
                gradient[network.n_parameters :] = noise.vjp(by_std[0], part)
        deltas = network.backward(network.activation_derivatives(layers), cotangent.numpy())
        for part, array in zip(parts, gradients.numpy(), strict=True):
            network.gradient(layers, deltas, network.split(array[: network.n_parameters]), part)
        return gradients

    def fisher_product(self) -> Callable[[Tensor], Tensor]:
        """The map ``v -> F v``, flat, with the Fisher matrix averaged over the states."""
        size, hessian_product = self.network.n_parameters, self._hessian_product()
        jacobian = Jacobian(self.network, self.layers)

        def product(vector: Tensor) -> Tensor:
            result = torch.empty_like(vector)
            moved = torch.from_numpy(jacobian.jvp(vector[:size].numpy()))
            image, result[size:] = hessian_product(moved, vector[size:])
            jacobian.vjp(image.numpy(), result[:size].numpy())
            return result

        return product

    def _hessian_product(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """``v -> H v`` for the Hessian of the mean divergence in the outputs, ``(n, k)``, and in ``log_std``, flat."""
        outputs, latent = torch.from_numpy(self.layers[-1]), torch.from_numpy(self.layers[-2])
        if type(self.policy.action_dist) is CategoricalDistribution:
            return functools.partial(_categorical_hessian_product, torch.softmax(outputs, dim=1))
        if self.log_std is not None:
            normal: Any = self.distribution().distribution
            noise = Noise(self.policy, normal.scale, latent, self.log_std)
            return functools.partial(_gaussian_hessian_product, noise, self.policy.action_unit)
        leaf = outputs.clone().requires_grad_()
        divergence = mean_kl(self.distribution(), self.policy.distribution_of(leaf, latent, None))
        product = fisher_vector_product(divergence, [leaf])
        return lambda moved, rest: (product(moved.flatten()).view_as(moved), rest)

    def _at(self, vector: Tensor | None) -> tuple[NumpyMLP, list[Array], Tensor | None]:
        if vector is None:
            return self.network, self.layers, self.log_std
        network = self.network.with_parameters(vector[: self.network.n_parameters].numpy())
        log_std = None if self.log_std is None else vector[network.n_parameters :].view_as(self.log_std)
        return network, network.forward(self.features), log_std


def _categorical_hessian_product(probabilities: Tensor, moved: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """By ``(diag(p) - p p^T) / n``, the Hessian of a Categorical's mean KL in its logits; the ``rest`` is empty."""
    weighted = probabilities * moved
    return (weighted - probabilities * weighted.sum(dim=1, keepdim=True)) / len(probabilities), rest


def _gaussian_hessian_product(noise: "Noise", unit: Tensor, moved: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
    """By ``1 / std^2`` and ``2 / std^2``, the Hessian of a Gaussian's KL in its mean and its standard deviation."""
    by_noise = noise.vjp(2.0 * noise.jvp(log_std) / noise.std.square())
    return moved * (unit / noise.std).square() / len(noise.std), by_noise / len(noise.std)


class Noise:
    """Standard deviations of a Gaussian policy's actions, ``(n, n_actions)``, and their Jacobian in ``log_std``.

    Their squares are ``features^2 @ exp(2 log_std)`` for gSDE, and ``exp(2 log_std)`` where all states have one noise.
    """

    def __init__(self, policy: StandardisedActorCriticPolicy, std: Tensor, latent: Tensor, log_std: Tensor) -> None:
        self.std = std.detach()
        self._shape = log_std.shape
        variances = (2.0 * policy.log_std_of_actions(log_std)).exp()
        self._variances = variances.view(-1, variances.shape[-1]).expand(-1, self.std.shape[1])
        gsde = isinstance(policy.action_dist, StateDependentNoiseDistribution)
        self._squares = noise_features(latent).square() if gsde else torch.ones_like(self.std[:, :1])

    def jvp(self, tangent: Tensor) -> Tensor:
        """Their derivative along a flat ``tangent`` of ``log_std``."""
        moved: Tensor = self._squares @ (self._variances * tangent.view(self._shape))
        return moved / self.std

    def vjp(self, cotangent: Tensor, rows: slice = slice(None)) -> Tensor:
        """Gradient of ``(cotangent * std)[rows].sum()`` in ``log_std``, flat."""
        by_variance: Tensor = self._squares[rows].T @ (cotangent / self.std)[rows]
        return (by_variance * self._variances).sum_to_size(self._shape).flatten()


def mlp_from_modules(*modules: nn.Module) -> NumpyMLP | None:
    """The network that ``modules`` make in a row, with their own parameters; None if they are of other kinds."""
    arrays: list[Array] = []
    activations: list[type[nn.Module]] = []
    parameters = [parameter for module in modules for parameter in module.parameters()]
    if any(each.device.type != "cpu" or each.dtype not in (torch.float32, torch.float64) for each in parameters):
        return None
    # Exact types: a subclass may compute anything.
    for module in (part for whole in modules for part in whole.modules() if type(part) is not nn.Sequential):
        if type(module) is nn.Linear and module.bias is not None:
            arrays += [module.weight.detach().numpy(), module.bias.detach().numpy()]
            activations.append(nn.Identity)
        elif type(module) in (nn.Tanh, nn.ReLU) and activations and activations[-1] is nn.Identity:
            activations[-1] = type(module)
        else:
            return None
    return NumpyMLP(arrays, activations) if activations else None


def has_plain_adam(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> bool:
    """Whether ``optimizer`` is torch's Adam with nothing around it, over all of ``parameters`` as one group."""
    if type(optimizer) is not torch.optim.Adam or len(optimizer.param_groups) != 1:
        return False
    # As in `_is_changed`. A scheduler's wrapper of `step` is an attribute of the instance.
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks or "step" in vars(optimizer)
    group = optimizer.param_groups[0]
    # (AdamW's decay counts only with weight_decay.)
    options = any(map(group.get, ("weight_decay", "amsgrad", "maximize", "capturable", "differentiable")))
    return not hooked and not options and [*map(id, group["params"])] == [*map(id, parameters)]


def _features_of(policy: StandardisedActorCriticPolicy, extractor: BaseFeaturesExtractor) -> Features:
    """What a network of ``policy`` sees of raw observations, ``(n, features_dim)``, by the present statistics."""
    space = policy.observation_space
    inner = extractor.extractor if type(extractor) is StandardisedFeatures else extractor
    if type(inner) is not FlattenExtractor or not isinstance(space, spaces.Box) or is_image_space(space):

        @torch.no_grad()
        def extracted(observations: ObservationBatch) -> Array:
            found: Array = BaseModel.extract_features(policy, observations, extractor).numpy()
            return found

        return extracted
    if type(extractor) is not StandardisedFeatures:
        return _flattened
    (statistics,) = extractor.statistics.running.values()
    assert isinstance(statistics, RunningMeanStd)
    clip = extractor.statistics.clip
    mean, std = _flattened(statistics.mean.unsqueeze(0)), _flattened(statistics.std.unsqueeze(0))

    def standardised(observations: ObservationBatch) -> Array:
        features = _flattened(observations) - mean
        features /= std
        np.maximum(features, -clip, out=features)
        np.minimum(features, clip, out=features)
        return features

    return standardised


def _flattened(observations: ObservationBatch) -> Array:
    assert isinstance(observations, Tensor)
    array: Array = observations.float().numpy()
    return array.reshape(len(array), -1)


def _is_changed(part: object) -> bool:
    """Whether a module or distribution has hooks, or a method of its own in the place of its class's."""
    # Torch has no public way to ask for hooks.
    own, kind = vars(part), type(part)
    hooked = any(own.get(f"_{when}_hooks") for when in ("forward", "forward_pre", "backward", "backward_pre"))
    return hooked or any(callable(own[name]) and hasattr(kind, name) for name in own)


@contextmanager
def one_thread(blas: bool) -> Iterator[None]:
    """Inside the block torch has one thread, and with ``blas`` numpy's BLAS as well.

    No limit is ever raised, and when the block ends, in whatever way, the threads are as before. Blocks may be nested.
    Of blocks in several threads of a program, the first to begin gives BLAS its threads back when it ends.

    Torch's idle threads wait actively. Beside BLAS's own, two small pools on two cores were measured to be 18 times as
    slow as one thread.
    """
    # Of the calling thread, unlike BLAS's.
    torch_threads = torch.get_num_threads()
    lowers_blas = blas and _blas_limit.acquire(blocking=False)
    try:
        with threadpool_limits(1, user_api="blas") if lowers_blas else nullcontext():
            torch.set_num_threads(1)
            yield
    finally:
        torch.set_num_threads(torch_threads)
        if lowers_blas:
            _blas_limit.release()
