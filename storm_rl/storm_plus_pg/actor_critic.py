"""The actor and the critic as collecting and updating need them, by autograd: for any policy, on any device."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from storm_rl.common.policies import ObservationBatch, StandardisedActorCriticPolicy, batch_size, select
from storm_rl.storm_plus_pg.metric import fisher_vector_product, mean_kl

Objective = Callable[[Distribution, slice], Tensor]
"""From the distribution on the states of a slice of the batch: a number for each, ``(n,)``."""


class ActorCritic:
    """The policy's two networks, with its parameters as they are at each call; acting mode is the caller's to set."""

    def __init__(self, policy: StandardisedActorCriticPolicy) -> None:
        self.policy = policy

    def threads(self) -> AbstractContextManager[None]:
        """Leaves the threads as they are: what autograd computes may be large."""
        return nullcontext()

    @torch.no_grad()
    def act(self, observations: ObservationBatch) -> tuple[Tensor, Tensor]:
        """Sampled actions ``(n, ...)`` and their log-probabilities ``(n,)``."""
        policy = self.policy
        if type(policy).forward is not ActorCriticPolicy.forward:
            actions, _, log_prob = policy(observations)
            return actions, log_prob
        # The same without the values, a pass of the critic that nothing would read.
        distribution = policy.get_distribution(observations)
        actions = distribution.get_actions()
        return actions.reshape(-1, *(policy.action_space.shape or ())), distribution.log_prob(actions)

    @torch.no_grad()
    def values(self, observations: ObservationBatch) -> Tensor:
        """Values in units of return, ``(n,)``."""
        # Of images a network holds many times their memory.
        parts = [slice(start, start + 256) for start in range(0, batch_size(observations), 256)]
        return torch.cat([self.policy.predict_values(select(observations, part)).flatten() for part in parts])

    def actor(self, observations: ObservationBatch) -> "Actor":
        """The action distribution on these raw states, to be evaluated and differentiated."""
        return Actor(self.policy, observations)

    def fit_critic(self, observations: ObservationBatch, targets: Tensor, minibatches: Iterable[Tensor]) -> float:
        """A step of the policy's optimizer on the squared error of each minibatch; gives the mean of their losses.

        ``observations`` are raw, ``(n, ...)``, and ``targets`` are those of ``policy.scaled_values``, ``(n,)``;
        ``minibatches`` are indices of transitions, one tensor a step.
        """
        policy = self.policy
        if not policy.critic_learns_features:
            with torch.no_grad():
                features = policy.critic_features(observations)
            return self.regress(policy.scaled_values, policy.optimizer, features, targets, minibatches)

        def loss_of(index: Tensor) -> Tensor:
            seen = policy.critic_features(select(observations, index))
            return functional.mse_loss(policy.scaled_values(seen), targets[index])

        return _descend(policy.optimizer, map(loss_of, minibatches))

    def regress(
        self,
        network: Callable[[Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        inputs: Tensor,
        targets: Tensor,
        minibatches: Iterable[Tensor],
    ) -> float:
        """A step of ``optimizer`` on the squared error of a network of one output; gives the mean of their losses.

        ``inputs`` are ``(n, n_in)``, ``targets`` ``(n,)``, ``minibatches`` as of :meth:`fit_critic`.
        """
        losses = (functional.mse_loss(network(inputs[index]).flatten(), targets[index]) for index in minibatches)
        return _descend(optimizer, losses)


def _descend(optimizer: torch.optim.Optimizer, losses: Iterable[Tensor]) -> float:
    """A step on each loss, which is computed after the step before it; gives their mean."""
    found = []
    for loss in losses:
        optimizer.zero_grad()
        if loss.requires_grad:  # Not where all of the critic is frozen.
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        found.append(loss.detach())
    return float(torch.stack(found).mean())


class Actor:
    """The action distribution on a batch of raw states as a function of the actor's flat parameters."""

    def __init__(self, policy: StandardisedActorCriticPolicy, observations: ObservationBatch) -> None:
        self.policy = policy
        self.observations = observations
        self.parameters = policy.actor_parameters()

    def distribution(self, parameters: Tensor | None = None) -> Distribution:
        """The distribution on all states, without graph, at a flat parameter vector; None: the present one."""
        with torch.no_grad(), self._parameters_set_to(parameters):
            # An SB3 policy has one distribution, which the next call overwrites.
            return copy.copy(self.policy.get_distribution(self.observations))

    def part_gradients(self, objective: Objective, parts: Sequence[slice], parameters: Tensor | None = None) -> Tensor:
        """Gradients of the sum of ``objective`` over the states of each part, ``(k, n_parameters)``."""
        gradients = self.parameters[0].new_empty(len(parts), sum(map(torch.numel, self.parameters)))
        # A pass for each part: one pass over all with a batched backward would carry every part's zeros along.
        with self._parameters_set_to(parameters):
            for part, gradient in zip(parts, gradients, strict=True):
                states = select(self.observations, part)
                total = objective(self.policy.get_distribution(states), part).sum()
                found = torch.autograd.grad(total, self.parameters, materialize_grads=True)
                # Torch's own way to one vector refuses what is not contiguous, as behind channels that are last.
                gradient.copy_(torch.cat([each.reshape(-1) for each in found]))
        return gradients

    def fisher_product(self) -> Callable[[Tensor], Tensor]:
        """The map ``v -> F v``, flat, with the Fisher matrix averaged over the states."""
        divergence = mean_kl(self.distribution(), self.policy.get_distribution(self.observations))
        return fisher_vector_product(divergence, self.parameters)

    @contextmanager
    def _parameters_set_to(self, vector: Tensor | None) -> Iterator[None]:
        """The parameters hold ``vector`` inside the block and what they held before after it, errors or not."""
        if vector is None:
            yield
            return
        before = parameters_to_vector(self.parameters).detach()
        vector_to_parameters(vector, self.parameters)
        try:
            yield
        finally:
            vector_to_parameters(before, self.parameters)


class SampledActions(NamedTuple):
    """``k`` actions of the present policy in each of ``n`` states, that no environment has seen."""

    actions: Tensor
    """``(k, n, ...)``."""
    log_prob: Tensor
    """Of the policy that they were drawn from, ``(k, n)``."""
    advantages: Tensor
    """``(k, n)``."""
