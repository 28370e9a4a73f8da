r"""The action distribution at other parameters than the policy's own, and gradients of one batch at several.

Every variance-reduced policy gradient needs :math:`\sum_k A_k \nabla \log \pi_\theta(a_k | s_k)` at the current and
at older parameters, on the same data, where the coefficients of one point (importance weights) depend on the
log-probabilities of the other. So the work comes in two halves: log-probabilities at all points, then gradients with
any coefficients.
"""

from collections.abc import Sequence
from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.func import functional_call

from storm_rl.common.parameters import parameters_behind
from storm_rl.episodic.recursions import Vector


class ActionDistribution(nn.Module):
    """A policy's action distribution as a module of its own, to be evaluated at other parameters.

    Parameters are those of the policy, not copies, and named as there, behind ``policy.``.

    Attributes:
        actor: The parameters that the distribution depends on, frozen ones included.
        critic: Those that only the values depend on. Layers that both share belong to the actor: the distribution at
            an anchor must not change unnoticed.
        actor_names: Names of the actor's trainable ones.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.described = self._described()
        actor, critic = parameters_behind(policy, "actor"), parameters_behind(policy, "critic")
        ids = {id(parameter) for parameter in actor}
        self.actor, self.critic = actor, [parameter for parameter in critic if id(parameter) not in ids]
        trainable = [(name, values) for name, values in self.named_parameters() if values.requires_grad]
        self.actor_names = [name for name, values in trainable if id(values) in ids]

    def is_current(self, gradient: Vector) -> bool:
        """Whether parameters, their names and the frozen ones are as before; so they are not if ``gradient`` lacks any.

        A gradient of another network says nothing of this.
        """
        parameters = dict(self.named_parameters())
        own = all(name in parameters and parameters[name].shape == part.shape for name, part in gradient.items())
        return self.described == self._described() and (not gradient or not own or [*gradient] == self.actor_names)

    def _described(self) -> list[tuple[str, int, bool]]:
        return [(name, id(values), values.requires_grad) for name, values in self.policy.named_parameters()]

    def forward(self, observations: Any, actions: Tensor | None = None) -> Tensor:
        """Log-probabilities of ``actions``, shape ``(n,)``, or sampled actions if there are none."""
        distribution = self.policy.get_distribution(observations)
        return distribution.get_actions() if actions is None else distribution.log_prob(actions)

    def with_parameters(self, point: dict[str, Tensor], observations: Any, actions: Tensor | None = None) -> Tensor:
        """As a call, at the parameters (and statistics) of ``point``; the policy keeps its own."""
        # SB3 registers one module under several names (`features_extractor`, `pi_features_extractor`). Tied, as by
        # default, they would leave the policy with the point's tensors in place of its own; one name is enough.
        result: Tensor = functional_call(self, point, (observations, actions), tie_weights=False)
        return result

    def named(self, names: list[str]) -> dict[str, nn.Parameter]:
        """The parameters of these names, in this order."""
        parameters = dict(self.named_parameters())
        return {name: parameters[name] for name in names}

    def point(self) -> dict[str, Tensor]:
        """What moves the distribution, detached: the actor's trainable parameters and the policy's statistics."""
        statistics = {name: values for name, values in self.named_buffers() if values.is_floating_point()}
        return {name: values.detach() for name, values in self.named(self.actor_names).items()} | statistics


class LogProbAtPoints:
    """Log-probabilities of a batch at several parameter vectors, and gradients of their linear combinations.

    Each of ``points`` is as `ActionDistribution.point` gives.

    Attributes:
        values: Log-probabilities, detached, shape ``(n_points, n)``.

    Raises:
        ValueError: If names or shapes differ between points.
    """

    def __init__(
        self, distribution: ActionDistribution, points: Sequence[Vector], observations: Any, actions: Tensor
    ) -> None:
        shapes = [{name: values.shape for name, values in point.items()} for point in points]
        if any(point != shapes[0] for point in shapes):
            raise ValueError("the parameter vectors differ in names or shapes; anchors must come from this policy")
        self._leaves = [
            {name: point[name].clone().requires_grad_() for name in distribution.actor_names} for point in points
        ]
        at_points = [{**point, **leaves} for point, leaves in zip(points, self._leaves, strict=True)]
        self._log_probs = [distribution.with_parameters(point, observations, actions) for point in at_points]
        self.values = torch.stack(self._log_probs).detach()

    def gradients(self, coefficients: Tensor) -> list[Vector]:
        """``sum_k coefficients[p, k] grad log_prob_k`` at each point ``p``; may be called again with others.

        Raises:
            ValueError: If ``coefficients`` have not the shape of ``values``.
        """
        if coefficients.shape != self.values.shape:
            shape, right = tuple(coefficients.shape), tuple(self.values.shape)
            raise ValueError(f"coefficients have shape {shape}, the log-probabilities {right}")
        gradients = []
        for log_prob, leaves, row in zip(self._log_probs, self._leaves, coefficients, strict=True):
            found = torch.autograd.grad(
                log_prob, list(leaves.values()), row.to(log_prob.dtype), retain_graph=True, materialize_grads=True
            )
            gradients.append(dict(zip(leaves, found, strict=True)))
        return gradients
