"""The action distribution on a batch of states as a function of the actor's flat parameters, and its derivatives."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from stable_baselines3.common.distributions import Distribution
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from storm_rl.common.dense_network import Array, DenseNetwork, Jacobian
from storm_rl.common.dense_policy import DensePolicy, Evaluated
from storm_rl.common.distributions import kept, mean_kl
from storm_rl.common.observations import ObservationBatch, batch_size, select
from storm_rl.common.policies import StandardisedActorCriticPolicy
from storm_rl.gradients.fisher import fisher_vector_product

Objective = Callable[[Distribution, slice], Tensor]
"""From the distribution on the states of a slice of the batch: a number for each, ``(n,)``."""


class ActorOnStates:
    """Any policy, by autograd.

    Args:
        policy: The policy; in acting mode.
        observations: The states, raw.
    """

    def __init__(self, policy: StandardisedActorCriticPolicy, observations: ObservationBatch) -> None:
        self.policy = policy
        self.evaluated: Evaluated = policy
        self.observations = observations
        self.size = batch_size(observations)
        self.parameters = policy.actor_parameters()

    def distribution(self, at: Tensor | None = None) -> Distribution:
        """The distribution on all states, without graph; ``at`` a flat parameter vector in place of the present one."""
        with torch.no_grad(), self._values(at):
            return kept(self.policy.get_distribution(self.observations))

    def part_gradients(self, objective: Objective, parts: Sequence[slice], at: Tensor | None = None) -> Tensor:
        """Gradients of the sum of ``objective`` over the states of each part, ``(k, n_parameters)``."""
        gradients = []
        # A pass for each part: one pass over all with a batched backward would carry every part's zeros along.
        with self._values(at):
            for part in parts:
                states = select(self.observations, torch.arange(self.size, device=self.policy.device)[part])
                total = objective(self.policy.get_distribution(states), part).sum()
                found = torch.autograd.grad(total, self.parameters, materialize_grads=True)
                gradients.append(parameters_to_vector(found))
        return torch.stack(gradients)

    def fisher_product(self) -> Callable[[Tensor], Tensor]:
        """The map ``v -> F v``, flat, with the Fisher matrix averaged over the states."""
        fixed = self.distribution()
        divergence = mean_kl(fixed, self.policy.get_distribution(self.observations))
        return fisher_vector_product(divergence, self.parameters)

    @contextmanager
    def _values(self, vector: Tensor | None) -> Iterator[None]:
        """The parameters hold ``vector`` inside the block and what they held before after it, errors or not."""
        if vector is None:
            yield
            return
        held = parameters_to_vector(self.parameters).detach()
        vector_to_parameters(vector, self.parameters)
        try:
            yield
        finally:
            vector_to_parameters(held, self.parameters)


class DenseActorOnStates(ActorOnStates):
    """A fully connected policy: autograd for the distribution only, closed form for the network behind it.

    The Jacobian ``J`` of the outputs (logits or means) in the network's parameters is used row by row, so that
    gradients of all parts share one pass, and ``F v = J^T H J v / n`` with the Hessian ``H`` of the divergence in the
    outputs: one forward and one backward pass instead of a differentiated backward pass (Schraudolph 2002, "Fast
    curvature matrix-vector products for second-order gradient descent").

    Args:
        dense: The policy's closed form. "The present" parameters are those at this moment.
        observations: The states, raw.
    """

    def __init__(self, dense: DensePolicy, observations: ObservationBatch) -> None:
        super().__init__(dense.policy, observations)
        self.evaluated = dense
        self.network = dense.actor
        self.log_std = dense.log_std
        self.features = dense.actor_features(observations)
        self.present = self.network.forward(self.features)

    def distribution(self, at: Tensor | None = None) -> Distribution:
        """See the base class."""
        network, log_std = self._at(at)
        values = self.present if at is None else network.forward(self.features)
        with torch.no_grad():
            return kept(self._distribution_of(values, log_std))

    def part_gradients(self, objective: Objective, parts: Sequence[slice], at: Tensor | None = None) -> Tensor:
        """See the base class."""
        network, log_std = self._at(at)
        values = self.present if at is None else network.forward(self.features)
        outputs, latent = torch.from_numpy(values[-1]), torch.from_numpy(values[-2])
        gradients = outputs.new_zeros(len(parts), network.n_parameters + (0 if log_std is None else log_std.numel()))
        if log_std is None:
            leaf = outputs.detach().requires_grad_()
            total = objective(self.policy.distribution_of(leaf, latent, None), slice(0, self.size)).sum()
            (cotangent,) = torch.autograd.grad(total, leaf)
        else:
            # The noise's own parameters are shared by all states: a pass for each part tells its share.
            log_std = log_std.clone().requires_grad_()
            cotangents = []
            for part, gradient in zip(parts, gradients, strict=True):
                leaf = outputs[part].detach().requires_grad_()
                total = objective(self.policy.distribution_of(leaf, latent[part], log_std), part).sum()
                rows, noise = torch.autograd.grad(total, (leaf, log_std), materialize_grads=True)
                cotangents.append(rows)
                gradient[network.n_parameters :] = noise.flatten()
            cotangent = torch.cat(cotangents)
        deltas = network.backward(network.slopes(values), cotangent.numpy())
        for part, gradient in zip(parts, gradients.numpy(), strict=True):
            network.gradient(values, deltas, network.split(gradient[: network.n_parameters]), part)
        return gradients

    def fisher_product(self) -> Callable[[Tensor], Tensor]:
        """See the base class."""
        size, shape = self.network.n_parameters, self.present[-1].shape
        hessian_product = self._hessian_product()
        if self.log_std is None and shape[1] <= Jacobian.MAX_OUTPUTS:
            return self._product_of_roots(hessian_product)
        jacobian = Jacobian(self.network, self.present)

        def product(vector: Tensor) -> Tensor:
            moved = torch.from_numpy(jacobian.times(vector[:size].numpy()))
            image = hessian_product(torch.cat([moved.flatten(), vector[size:]]))
            result = torch.empty_like(vector)
            jacobian.transposed_times(image[: moved.numel()].view(shape).numpy(), result[:size].numpy())
            result[size:] = image[moved.numel() :]
            return result

        return product

    def _product_of_roots(self, hessian_product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """``v -> (L^T J)^T L^T J v`` with ``H = L L^T``, which splits by states into blocks of outputs.

        A column of ``L`` that is 0 for all states is left out: one for a Categorical, whose logits share a direction
        that changes nothing.
        """
        outputs = torch.from_numpy(self.present[-1])
        # A product for each output gives all blocks.
        units = torch.eye(outputs.shape[1]).unsqueeze(1).expand(-1, *outputs.shape)
        blocks = torch.stack([hessian_product(unit.flatten()).view_as(outputs) for unit in units], dim=2)
        jacobian = Jacobian(self.network, self.present, roots(blocks.numpy()))

        def product(vector: Tensor) -> Tensor:
            result = torch.empty_like(vector)
            jacobian.transposed_times(jacobian.times(vector.numpy()), result.numpy())
            return result

        return product

    def _hessian_product(self) -> Callable[[Tensor], Tensor]:
        """``v -> H v`` for the Hessian of the mean divergence in the outputs, flat, and the noise's own parameters."""
        outputs, latent = torch.from_numpy(self.present[-1]), torch.from_numpy(self.present[-2])
        leaf = outputs.clone().requires_grad_()
        log_std = None if self.log_std is None else self.log_std.clone().requires_grad_()
        fixed = kept(self.policy.distribution_of(outputs, latent, self.log_std))
        divergence = mean_kl(fixed, self.policy.distribution_of(leaf, latent, log_std))
        return fisher_vector_product(divergence, [leaf] if log_std is None else [leaf, log_std])

    def _distribution_of(self, values: Sequence[Array], log_std: Tensor | None) -> Distribution:
        return self.policy.distribution_of(torch.from_numpy(values[-1]), torch.from_numpy(values[-2]), log_std)

    def _at(self, vector: Tensor | None) -> tuple[DenseNetwork, Tensor | None]:
        if vector is None:
            return self.network, self.log_std
        size = self.network.n_parameters
        log_std = None if self.log_std is None else vector[size:].view_as(self.log_std)
        return self.network.at(vector[:size].numpy()), log_std


def actor_on_states(policy: StandardisedActorCriticPolicy, observations: ObservationBatch) -> ActorOnStates:
    """The policy's actor on these states, in closed form where it can be had."""
    dense = DensePolicy.of(policy)
    return ActorOnStates(policy, observations) if dense is None else DenseActorOnStates(dense, observations)


def roots(blocks: Array, negligible: float = 1e-6) -> list[Array]:
    r"""Columns ``l_j`` with :math:`\sum_j l_j l_j^T` the block of each state: Cholesky's algorithm, all states at once.

    Args:
        blocks: Positive semidefinite, ``(n, k, k)``.
        negligible: What is left of a diagonal entry for a column counts as 0 where no state's is more than this
            share of the largest entry.

    Returns:
        Of the columns that are not 0, or one that is, ``(n, k)`` each.
    """
    left = blocks.astype(np.float64)
    largest = np.max(np.diagonal(left, axis1=1, axis2=2), axis=1)
    columns = []
    for index in range(blocks.shape[1]):
        pivot = left[:, index, index]
        if float(pivot.max()) <= negligible * float(largest.max()):
            continue
        # Below, a pivot is what rounding left, and so is its column.
        column = np.where((pivot > 1e-12 * largest)[:, None], left[:, :, index], 0.0)
        column /= np.sqrt(np.maximum(pivot, np.finfo(np.float64).tiny))[:, None]
        # As in a semidefinite block, whatever the rounding of a small pivot.
        bound = np.sqrt(np.maximum(np.diagonal(left, axis1=1, axis2=2), 0.0))
        column = np.clip(column, -bound, bound)
        left -= column[:, :, None] * column[:, None, :]
        columns.append(column.astype(blocks.dtype))
    return columns or [np.zeros_like(blocks[:, 0])]
