"""Fitting the critic to its targets, minibatch by minibatch."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from storm_rl.common.dense_network import Array
from storm_rl.common.dense_policy import DensePolicy
from storm_rl.common.observations import ObservationBatch, select
from storm_rl.common.policies import StandardisedActorCriticPolicy


def fit_critic(
    policy: StandardisedActorCriticPolicy,
    observations: ObservationBatch,
    targets: Tensor,
    passes: Iterable[tuple[Tensor, ...]],
) -> float:
    """A step of the policy's optimizer on the squared error of each minibatch; gives the mean of their losses.

    Args:
        policy: Its optimizer holds the critic's parameters.
        observations: Raw, ``(n, ...)``.
        targets: In units of ``policy.value_scale``, ``(n,)``.
        passes: Over the observations: for each the minibatches, as indices.
    """
    dense = DensePolicy.of(policy)
    if dense is not None and has_plain_adam(policy):
        return _fit_in_closed_form(dense, observations, targets, passes)
    features = None
    if not policy.critic_learns_features:
        with torch.no_grad():
            features = policy.critic_features(observations)
    losses = []
    for index in (index for indices in passes for index in indices):
        seen = policy.critic_features(select(observations, index)) if features is None else features[index]
        loss = functional.mse_loss(policy.scaled_values(seen), targets[index])
        policy.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        policy.optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def has_plain_adam(policy: StandardisedActorCriticPolicy) -> bool:
    """Whether the policy's optimizer is torch's Adam with nothing around it, over all of the critic as one group."""
    optimizer = policy.optimizer
    if type(optimizer) is not torch.optim.Adam or len(optimizer.param_groups) != 1:
        return False
    hooks = (*optimizer._optimizer_step_pre_hooks, *optimizer._optimizer_step_post_hooks)
    group = optimizer.param_groups[0]
    same = [id(parameter) for parameter in group["params"]] == [id(part) for part in policy.critic_parameters()]
    # A scheduler's wrapper of `step` is an attribute of the instance.
    plain = "step" not in vars(optimizer) and not hooks
    return same and plain and not any(group[name] for name in ("amsgrad", "capturable", "differentiable"))


def _fit_in_closed_form(
    dense: DensePolicy, observations: ObservationBatch, targets: Tensor, passes: Iterable[tuple[Tensor, ...]]
) -> float:
    """The same with gradients in closed form and parameters, gradients and Adam's moments as one vector each.

    One vector, since Adam's own arithmetic takes a tenth of the time that its walk over six parameters does.
    """
    policy = dense.policy
    features, columns = dense.critic_features(observations), targets.numpy().reshape(-1, 1)
    optimizer, parameters = policy.optimizer, policy.critic_parameters()
    group, states = optimizer.param_groups[0], [optimizer.state[parameter] for parameter in parameters]
    theta = dense.critic.flat()
    gradient, network = np.empty_like(theta), dense.critic.at(theta)
    into = network.split(gradient)
    mean, square = _joined(states, "exp_avg", theta), _joined(states, "exp_avg_sq", theta)
    n_steps = states[0]["step"].clone() if states[0] else torch.zeros(())
    vectors = [[torch.from_numpy(array)] for array in (theta, gradient, mean, square)]
    settings = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
    settings["beta1"], settings["beta2"] = group["betas"]
    # The kernel of torch's own fused Adam: what surrounds it there takes as long again.
    adam = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    # Arrays to work in, for every size of minibatch.
    spaces: dict[int, list[list[Array]]] = {}
    losses = []
    with torch.no_grad():
        for indices in passes:
            order = torch.cat(indices).numpy()
            inputs, wanted, start = features[order], columns[order], 0
            for size in map(len, indices):
                if size not in spaces:
                    spaces[size] = [network.layers(size) for _ in range(3)]
                layers, slopes, deltas = spaces[size]
                values = network.forward(inputs[start : start + size], layers)
                errors = np.subtract(values[-1], wanted[start : start + size], out=deltas[-1])
                losses.append(float(np.vdot(errors, errors)) / size)
                errors *= 2.0 / size
                network.gradient(values, network.backward(network.slopes(values, slopes), errors, deltas), into)
                n_steps += 1
                adam(vectors[0], vectors[1], vectors[2], vectors[3], [], [n_steps], **settings)
                start += size
        parts = zip(network.arrays, network.split(mean), network.split(square), strict=True)
        for parameter, (value, first, second) in zip(parameters, parts, strict=True):
            parameter.copy_(torch.from_numpy(value))
            moments = {"exp_avg": torch.from_numpy(first.copy()), "exp_avg_sq": torch.from_numpy(second.copy())}
            optimizer.state[parameter] = {"step": n_steps.clone(), **moments}
    return float(np.mean(losses))


def _joined(states: list[dict[str, Tensor]], name: str, like: Array) -> Array:
    """A moment of all parameters as one vector; zeros before the first step."""
    if not states[0]:
        return np.zeros_like(like)
    return np.concatenate([state[name].numpy().reshape(-1) for state in states])
