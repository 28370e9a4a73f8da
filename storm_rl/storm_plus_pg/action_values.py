"""Action values: what a critic that also sees actions says of them, and how far the data bear it out."""

from collections.abc import Callable, Iterator

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import create_mlp
from torch import Tensor, nn

from storm_rl.common.checks import check_finite
from storm_rl.common.importance_weights import per_step_weights
from storm_rl.common.policies import StandardisedActorCriticPolicy, concatenate
from storm_rl.storm_plus_pg.actor_critic import Actor, SampledActions
from storm_rl.storm_plus_pg.numpy_actor_critic import Networks, NumpyActor
from storm_rl.storm_plus_pg.recursion import covariance_of_mean
from storm_rl.storm_plus_pg.rollouts import RolloutWindow, Transitions, shaped_rewards

# Units of the two hidden layers; times an update that targets are computed anew; sampled actions in each state.
N_UNITS = 64
N_SWEEPS = 8
N_ACTIONS = 4
# The residual's gradient counts by how far its square is above so many times what noise alone makes of it.
NOISE_FACTOR = 2.0
# Least squares on few transitions may find any slope.
LARGEST_SLOPE = 10.0


class ActionValueCritic(nn.Module):
    r"""Two estimates of :math:`Q^\pi(s, a)`, fitted to the transitions of many rollouts, whoever acted.

    Two networks, which are regressed on

    .. math:: r + \gamma Q(s', a'), \quad a' \sim \pi(\cdot | s'), \qquad\text{and}\qquad r + \gamma V(s'),

    without the second term where the episode terminated. The first is fitted Q evaluation (Le, Voloshin, Yue 2019,
    arXiv 1903.08738), from the network of the last update on: the smoother one, but it learns of what is far ahead only
    over many updates. The second sees as far as the state-value critic, and has its errors. Nothing in either depends
    on the policy that acted, so that old transitions serve as well as new ones. Steps at which a time limit ended an
    episode are left out.

    The networks see the state-value critic's features, and actions as the environment takes them: Box actions clipped
    and in units of half their range, choices one-hot.

    Args:
        policy: Whose actions are valued; what extracts its features is not trained here.
    """

    def __init__(self, policy: StandardisedActorCriticPolicy) -> None:
        super().__init__()
        n_inputs = policy.vf_features_extractor.features_dim + spaces.flatdim(policy.action_space)
        networks = (nn.Sequential(*create_mlp(n_inputs, 1, [N_UNITS, N_UNITS])) for _ in range(2))
        self.networks = nn.ModuleList(networks).to(policy.device)
        self.optimizer = torch.optim.Adam(self.parameters())

    @torch.no_grad()
    def values(self, policy: StandardisedActorCriticPolicy, features: Tensor, actions: Tensor) -> Tensor:
        """Both estimates, ``(n, 2)``, of ``actions``, ``(n, ...)``, in units of the scale of :meth:`fit`."""
        inputs = torch.cat([features, environment_units(policy, actions)], dim=1)
        return torch.cat([network(inputs) for network in self.networks], dim=1)

    def fit(
        self,
        networks: Networks,
        window: RolloutWindow,
        gamma: float,
        scale: float,
        minibatches: Callable[[int], Iterator[Tensor]],
        logger: Logger,
    ) -> None:
        """Fit the networks to all rollouts of ``window``, where there is a transition to fit to.

        Args:
            networks: Of the policy, at its present parameters.
            window: The rollouts.
            gamma: Discount factor.
            scale: Rewards, less what moves all values by the policy's offset, are divided by this; in units of return.
            minibatches: From a number of transitions: indices, one tensor a step.
            logger: For ``train/action_value_loss``.
        """
        policy, rollouts = networks.policy, window.rollouts
        rewards = torch.cat([rollout.rewards.flatten() for rollout in rollouts])
        dones = torch.cat([rollout.dones.flatten() for rollout in rollouts])
        ends = torch.cat([rollout.terminated.flatten() for rollout in rollouts])
        rows = (dones == ends).nonzero().flatten()
        if len(rows) == 0:
            return
        rewards = shaped_rewards(rewards, ends, policy.value_offset, gamma) / scale
        with torch.no_grad():
            features = policy.critic_features(concatenate([rollout.observations for rollout in rollouts]))
            actions = torch.cat([rollout.actions for rollout in rollouts])
            inputs = torch.cat([features, environment_units(policy, actions)], dim=1)
            following = concatenate([rollout.next_observations() for rollout in rollouts])
            next_features, next_actions = policy.critic_features(following), networks.actor(following).distribution()
        next_values = (networks.values(following) - policy.value_offset) / scale
        by_state = rewards + gamma * torch.where(ends, 0.0, next_values)
        steps, losses = [rows[index] for index in minibatches(len(rows))], []
        n_steps = -(-len(steps) // N_SWEEPS)
        for start in range(0, len(steps), n_steps):
            sweep = steps[start : start + n_steps]
            next_inputs = torch.cat([next_features, environment_units(policy, independent_sample(next_actions))], dim=1)
            # Only where they are used, which is faster.
            drawn, by_own = torch.cat(sweep), rewards.clone()
            with torch.no_grad():
                own = self.networks[0](next_inputs[drawn]).flatten()
            by_own[drawn] += gamma * torch.where(ends[drawn], 0.0, own)
            for network, targets in zip(self.networks, (by_own, by_state), strict=True):
                losses.append(networks.regress(network, self.optimizer, inputs, targets, sweep))
        check_finite("the action values", torch.tensor(losses))
        logger.record("train/action_value_loss", sum(losses) / len(losses))

    @torch.no_grad()
    def advantages(
        self, policy: StandardisedActorCriticPolicy, distribution: Distribution, batch: Transitions
    ) -> tuple[Tensor, SampledActions]:
        """Advantages of the actions of ``batch``, ``(n, 2)``, and of fresh ones of ``distribution``, ``(k, n, 2)``.

        The baseline of an action is the mean value of fresh actions, without itself. With gSDE these are independent in
        each state, where acting has one matrix for many.
        """
        features = policy.critic_features(batch.observations)
        actions = torch.stack([independent_sample(distribution) for _ in range(N_ACTIONS)])
        log_prob = torch.stack([distribution.log_prob(each) for each in actions])
        values = torch.stack([self.values(policy, features, each) for each in actions])
        baseline = values.mean(dim=0)
        fresh = (values - baseline) * (N_ACTIONS / (N_ACTIONS - 1))
        return self.values(policy, features, batch.actions) - baseline, SampledActions(actions, log_prob, fresh)


def with_control_variate(
    critic: ActionValueCritic,
    actor: Actor | NumpyActor,
    batch: Transitions,
    max_weight: float | None,
    part_gradients: Callable[[Transitions], tuple[Tensor, Tensor]],
    logger: Logger,
) -> Transitions:
    r"""The batch with what the action values explain of its advantages taken over all actions of the policy.

    With :math:`A_Q(s, a) = Q(s, a) - E_\pi Q(s, \cdot)`, the advantages :math:`\hat A` and the weights :math:`w`, the
    policy gradient is

    .. math::
        \frac1N \sum_s E_{a \sim \pi} [\beta A_Q(s, a) \nabla \log \pi(a|s)]
        + \frac{c}{N} \sum w (\hat A - \beta A_Q)(s, a) \nabla \log \pi(a|s).

    The first sum, over sampled actions, has no noise of the actions taken and of what followed them; in the second,
    with :math:`c = 1`, :math:`A_Q` is a control variate and moves no mean, right or wrong (Gu et al. 2017, "Q-Prop",
    arXiv 1611.02247), but for what its fit owes to the same transitions. With :math:`c < 1` the gradient leans on
    :math:`A_Q`: interpolated policy gradients with :math:`\nu = 1 - c` (Gu et al. 2017, arXiv 1706.00387).

    :math:`\beta A_Q` stands for :math:`\beta_1 A_{Q_1} + \beta_2 A_{Q_2}` of the two estimates, and :math:`\beta` is
    measured: least squares of :math:`\hat A`, without negative parts; a fifth too low, for the expectation in
    :math:`A_Q` is itself the mean of four samples. The second sum is the part that the
    action values do not explain, and mostly noise. With its squared norm :math:`R` and the trace :math:`V` of its
    covariance, from the gradients of the batch's parts, it is shrunk as James and Stein (1961) do, cut off at
    0: :math:`c = \max(0, 1 - 2 V / R)`, with about the largest factor that gains under their
    assumptions. Where all of it may be noise, the action values alone count, with their bias; where it is not, they are
    put right.

    Args:
        critic: Fitted to the present policy.
        actor: That policy on the states of the batch.
        batch: With standardised advantages.
        max_weight: Of importance weights.
        part_gradients: Gradients of a batch's parts, ``(k, n)``, from its advantages alone, and weights.
        logger: For ``train/action_value_slope`` and ``train/lookahead_slope``, :math:`\beta_1` and :math:`\beta_2`, and
            ``train/residual_share``, :math:`c`.

    Returns:
        The batch, with what is left of its advantages, and sampled actions.
    """
    distribution = actor.distribution()
    taken, sampled = critic.advantages(actor.policy, distribution, batch)
    weights = per_step_weights(distribution.log_prob(batch.actions), batch.behaviour_log_prob, max_weight)
    taken = taken - (weights[:, None] * taken).mean(dim=0)
    slopes = nonnegative_slopes(taken, batch.advantages, weights).clamp(max=LARGEST_SLOPE)
    residual = batch._replace(advantages=batch.advantages - taken @ slopes)
    gradients, _ = part_gradients(residual)
    norm = float(gradients.mean(dim=0).square().sum())
    share = max(0.0, 1.0 - NOISE_FACTOR * covariance_of_mean(gradients, gradients) / norm) if norm > 0.0 else 0.0
    explained = sampled._replace(advantages=sampled.advantages @ slopes)
    logger.record("train/action_value_slope", float(slopes[0]))
    logger.record("train/lookahead_slope", float(slopes[1]))
    logger.record("train/residual_share", share)
    return residual._replace(advantages=share * residual.advantages, sampled=explained)


def nonnegative_slopes(inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The two slopes, none below 0, of the weighted least squares of ``targets``, ``(n,)``, on ``inputs``, ``(n, 2)``.

    Where those of both inputs together are not both positive, the best is that of one alone.
    """
    weighted = weights[:, None] * inputs
    moments, square = weighted.T @ targets, weighted.T @ inputs
    both: Tensor = torch.linalg.pinv(square, hermitian=True) @ moments
    if bool((both >= 0.0).all()):
        return both
    alone = (moments / square.diagonal().clamp(min=torch.finfo(square.dtype).tiny)).clamp(min=0.0)
    return torch.where(torch.arange(2, device=alone.device) == (alone * moments).argmax(), alone, 0.0)


def sampled_gain(sampled: SampledActions, distribution: Distribution, part: slice, max_weight: float | None) -> Tensor:
    """The surrogate's value by the sampled actions in the states of ``part``, ``(n,)``; ``distribution`` is on them."""
    total = torch.zeros(())
    for actions, log_prob, advantages in zip(*sampled, strict=True):
        present = distribution.log_prob(actions[part])
        total = total + per_step_weights(present, log_prob[part], max_weight) * advantages[part] * present
    return total / len(sampled.actions)


def independent_sample(distribution: Distribution) -> Tensor:
    """An action for each state: gSDE's noise otherwise is that of the environments, one for many states."""
    if not isinstance(distribution, StateDependentNoiseDistribution):
        return distribution.sample()
    actions: Tensor = distribution.distribution.sample()  # type: ignore[no-untyped-call]
    return actions if distribution.bijector is None else distribution.bijector.forward(actions)


def environment_units(policy: StandardisedActorCriticPolicy, actions: Tensor) -> Tensor:
    """Actions of the policy as vectors of order 1 of what the environment is given, ``(n, k)``."""
    space = policy.action_space
    if not isinstance(space, spaces.Box):
        vectors = preprocess_obs(actions, space)
        assert isinstance(vectors, Tensor)
        return vectors.reshape(len(actions), -1).float()
    actions = actions.reshape(len(actions), -1)
    if policy.squash_output:
        return actions
    low, high = (torch.as_tensor(bound, device=actions.device).flatten() for bound in (space.low, space.high))
    return (actions.clamp(low, high).float() - policy.action_middle) / policy.action_unit
